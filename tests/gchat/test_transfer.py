"""Rates that keep over widths: a coordinate check, and the best rate of each width on a grid.

Both are done twice, with `optim.width_rule mup` and with unscaled rates, which must fail them.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tiny
from gaia import params as statements
from gaia.optim import OptimConfig, make_optimizer
from gchat.model import GPT
from gchat.model_shape import model_shape
from gchat.objective import next_token

REFERENCE, T = 128, 16
RULES = ("mup", "standard")


def model_of(width):
    return tiny.gpt_config(dim=width, head_dim=32, hidden=2 * width, depth=2, seq_len=T)


OPTIM = OptimConfig(lr=1.0, warmup_steps=1, schedule="constant", weight_decay=0.0)
NAMES = ("lr", "embed_lr", "head_lr", "gain_lr")


def rates(rule, width, lr=1.0):
    """The four rates of this width, where that of the reference width is `lr`."""
    optim = replace(OPTIM, embed_lr=1.0, head_lr=1.0, gain_lr=1.0)
    if rule == "mup":
        asked = replace(OPTIM, width_rule="mup", width_reference=REFERENCE)
        optim = asked.scaled(1, width)[0]
        same = {name: getattr(asked, name) for name in (*NAMES, "width_rule", "width_reference")}
        assert replace(optim, **same) == asked  # the rule changes rates and nothing else
    return {name: jnp.float32(lr * getattr(optim, name)) for name in NAMES}


def trained(width, steps, batches_SBT, rates_of_width):
    """(losses, parameters before, parameters after) of a few steps at some rates."""
    config = tiny.train_config(model={"dim": width})
    config = replace(config, model=model_of(width))
    graph = model_shape(config.model).graph
    roles = statements.roles(model_shape(config.model).placements)
    start = nnx.to_pure_dict(nnx.state(GPT(config.model, rngs=nnx.Rngs(0))))
    optimizer = make_optimizer(replace(OPTIM, **rates_of_width), steps, roles)

    def step(carry, tokens_BT):
        params, state = carry

        def loss(params):
            batch = tiny_batch(tokens_BT)
            return next_token.loss(config, nnx.merge(graph, params), batch, None) / batch[0].size

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (after, _), losses = jax.lax.scan(step, (start, optimizer.init(start)), batches_SBT[:steps])
    return losses, start, after


def tiny_batch(tokens_BT):
    from gaia.data.batch import Batch

    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:])


@cache
def text(steps, rows):
    """Rows of a Markov chain whose next token has two likely values."""
    rng = np.random.default_rng(0)
    likely = rng.integers(0, tiny.VOCAB, (tiny.VOCAB, 2))
    tokens = np.zeros((steps, rows, T + 1), np.int32)
    tokens[..., 0] = rng.integers(0, tiny.VOCAB, (steps, rows))
    for t in range(T):
        follow = likely[tokens[..., t], rng.integers(0, 2, (steps, rows))]
        other = rng.integers(0, tiny.VOCAB, (steps, rows))
        tokens[..., t + 1] = np.where(rng.random((steps, rows)) < 0.9, follow, other)
    return tokens


def change(width):
    """Root mean square of what four steps change in the logits, by rule."""
    batches = jnp.asarray(text(4, 4))
    graph = model_shape(model_of(width)).graph

    def logits(params):
        model: GPT = nnx.merge(graph, params)
        return model.logits(model(batches[0, :, :-1])[0])[..., : tiny.VOCAB]

    @jax.jit  # once for both rules
    def size(rates_of_width):
        _, before, after = trained(width, 4, batches, rates_of_width)
        return jnp.sqrt(jnp.mean(jnp.square(logits(after) - logits(before))))

    return {rule: float(size(rates(rule, width, 0.01))) for rule in RULES}


def slope(widths, sizes):
    """Exponent of the size's growth with the width."""
    return float(np.polyfit(np.log(widths), np.log(sizes), 1)[0])


def check_coordinates(widths):
    changes = [change(width) for width in widths]
    slopes = {rule: slope(widths, [one[rule] for one in changes]) for rule in RULES}
    assert abs(slopes["mup"]) < 0.2, slopes
    assert slopes["standard"] > 0.5, slopes


def test_coordinates_change_alike_at_every_width():
    check_coordinates((64, 256))


@pytest.mark.slow
def test_coordinates_change_alike_up_to_512():
    check_coordinates((128, 256, 512))


@pytest.mark.slow
def test_the_best_rate_is_that_of_the_reference_width():
    """On a grid of sqrt(2): within one step of each other with mup, and wandering without."""
    steps, grid = 40, 2.0 ** (np.arange(-22, -6) / 2)
    batches = jnp.asarray(text(steps, 4))

    def best(width):
        run = jax.jit(lambda rates_of_width: trained(width, steps, batches, rates_of_width)[0])
        found = {}
        for rule in RULES:
            losses = [float(np.mean(run(rates(rule, width, lr))[-10:])) for lr in grid]
            found[rule] = int(np.nanargmin(losses))
            assert 0 < found[rule] < len(grid) - 1, losses  # inside of the grid
        return found

    narrow, wide = best(32), best(256)
    best_of = {rule: (narrow[rule], wide[rule]) for rule in RULES}
    assert abs(best_of["mup"][0] - best_of["mup"][1]) <= 1, best_of
    assert best_of["standard"][0] - best_of["standard"][1] >= 2, best_of

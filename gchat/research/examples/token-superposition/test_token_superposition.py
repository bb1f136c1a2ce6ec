"""Bags: one head for all targets, the phase by the step, and FLOPs that say so."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from gaia import layers, parallel
from gaia.data.batch import Batch
from gaia.errors import ConfigError
from gchat.model_shape import BAG, BAGGED_SHARE, flops_per_token, matmul_params
from gchat.objective import next_token
from gchat.train_state import graphdef, init_state
from gchat.train_step import make_scorer, make_train_step, superposed_loss

B, T = 4, 32


def made(steps=10, **groups):
    config = tiny.train_config(training={"steps": steps, "batch_size": B}, **groups)
    tokens = tiny.tokens(B, T + 1)
    return config, graphdef(config), Batch(tokens[:, :-1], tokens[:, 1:])


def test_the_loss_is_the_mean_over_each_bags_targets():
    config, graph, batch = made()
    _, params = tiny.make(config.model)
    got = superposed_loss(config, nnx.merge(graph, params), batch, None) / (B * T)
    gpt = nnx.merge(graph, params)
    bags = batch.inputs_BT.reshape(B, T // BAG, BAG)
    mean = np.asarray(params["embed"]["table"], np.float64)[bags].mean(2)
    gpt.embed = lambda ids, dtype: jnp.asarray(mean, dtype)
    x, _ = gpt(bags[..., 0])
    logits = np.asarray(gpt.logits(x), np.float64)[..., : tiny.VOCAB]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = [
        -log_p[b, bag, token]
        for b in range(B) for bag in range(T // BAG - 1) for token in bags[b, bag + 1]
    ]  # fmt: skip
    assert float(got) == pytest.approx(np.mean(each), rel=1e-4)
    steps = jax.jit(jax.grad(lambda p: superposed_loss(config, nnx.merge(graph, p), batch, None)))
    assert float(jnp.abs(steps(params)["head"]["kernel"]).max()) > 0


def test_the_phase_follows_the_step():
    """Step 2 of 10 is the last on bags; a state that was restored at 3 goes on plainly."""
    config, graph, batch = made()
    mesh = parallel.make_mesh(config.mesh)
    update = make_train_step(graph, config, mesh)
    state = init_state(config, mesh)
    plain = float(next_token.loss(config, nnx.merge(graph, state.params), batch, None)) / (B * T)
    bagged = float(superposed_loss(config, nnx.merge(graph, state.params), batch, None)) / (B * T)
    assert round(BAGGED_SHARE * 10) == 3 and plain != pytest.approx(bagged, abs=1e-6)
    for step, expected in ((2, bagged), (3, plain)):
        copy = jax.tree.map(jnp.copy, state)._replace(step=jnp.int32(step))
        assert float(update(copy, batch)[1].loss) == pytest.approx(expected, rel=1e-5)


def test_validation_reads_single_tokens():
    config, graph, batch = made()
    mesh = parallel.make_mesh(config.mesh)
    state = init_state(config, mesh)
    rows = Batch(*batch[:2], *(np.ones((B, T), np.int32) * k for k in (0, 1)))
    rows = rows._replace(positions_BT=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)))
    nats = np.asarray(make_scorer(graph, config, mesh)(state.params, rows)).sum()
    plain = float(next_token.loss(config, nnx.merge(graph, state.params), batch, None))
    assert nats == pytest.approx(plain, rel=1e-4)


def test_flops_are_those_of_the_whole_run():
    model = tiny.gpt_config()
    share = 1 - BAGGED_SHARE + BAGGED_SHARE / BAG
    assert flops_per_token(model) < 6 * matmul_params(model) * share + 12 * 16 * 64
    assert flops_per_token(model) > 6 * matmul_params(model) * share


@pytest.mark.parametrize("idea", ["ENGRAM", "SOFTCAP", "VALUE_EMBEDDINGS"])
def test_ideas_that_a_bag_would_miss_are_refused(idea, monkeypatch):
    config, graph, _ = made()
    monkeypatch.setattr(layers, f"IDEA_{idea}", "model", raising=False)
    with pytest.raises(ConfigError, match=f"trained with {idea.lower().replace('_', '-')}; leave"):
        make_train_step(graph, config, parallel.make_mesh(config.mesh))


def test_later_stages_are_refused():
    config, graph, _ = made()
    config = replace(config, stage=replace(config.stage, name="sft"))
    with pytest.raises(ConfigError, match=r"stage.name is sft, and bags of 4 tokens are for"):
        make_train_step(graph, config, parallel.make_mesh(config.mesh))


def test_rows_that_hold_no_whole_bags_are_refused():
    config, graph, _ = made()
    config = replace(config, model=replace(config.model, seq_len=30))
    with pytest.raises(ConfigError, match="whole bags"):
        make_train_step(graph, config, parallel.make_mesh(config.mesh))

"""Rates and decays that `derive` makes of a configuration, and the groups of tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tiny
from gaia import params
from gaia.errors import ConfigError
from gaia.optim import OptimConfig, make_optimizer
from gchat.config import derive, load
from gchat.model import GPT
from gchat.model_shape import matmul_params, model_shape


def derived(config):
    """For GPT-2's vocabulary."""
    return derive(config, vocab_size=50_266, padded_vocab_size=50_304)[0]


@pytest.fixture(scope="module")
def speedrun():
    return load(["speedrun"])


def changed(config, *, depth=None, **training):
    model = config.model if depth is None else replace(config.model, depth=depth)
    return replace(config, model=model, training=replace(config.training, **training))


# nanochat's base_train.py: 0.28 * sqrt(B / 2^19) * D_ref / D, D_ref that of depth 12 at as many
# tokens per parameter; 12 layers of width 768 have 4 * 768^2 + 3 * 768 * 2048 each, and a head.
P12, P24, P32 = (
    depth * (4 * dim**2 + 3 * dim * hidden) + 50_304 * dim
    for depth, dim, hidden in ((12, 768, 2048), (24, 1536, 4096), (32, 2048, 5632))
)


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({"depth": 12}, 0.28),
        ({}, 0.28 * 2**0.5 * P12 / P24),  # 0.065
        ({"depth": 32, "tokens_per_param": 20.0}, 0.28 * 2**0.5 * P12 / P32),  # 0.028
        ({"batch_size": 128}, 0.28 * 0.5**0.5 * P12 / P24),
        ({"tokens": 10 * 8 * P24, "batch_size": 256}, 0.28 * P12 / P24 / 10),
        ({"steps": 50, "batch_size": 256}, 0.28 * P12 / P24),  # cut short
    ],
)
def test_muons_decay_follows_batch_and_tokens(speedrun, changes, decay):
    config = derived(changed(speedrun, **changes))
    assert config.optim.matrix_weight_decay == pytest.approx(decay, rel=1e-3)
    assert derived(config).optim == config.optim  # a resumed run scales no more
    # As in nanochat it falls to 0 and moves nothing away from where its update goes.
    assert (config.optim.decay_schedule, config.optim.cautious_decay) == ("cosine", True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay_rule": "horizon"}, "decay_rule is horizon without optim.batch_reference"),
        (
            {
                "decay_rule": "horizon",
                "batch_reference": 64,
                "matrix_weight_decay_steps": ("0.1@3",),
            },
            "matrix_weight_decay_steps does not go with optim.decay_rule horizon",
        ),
        (
            {"width_rule": "mup", "width_reference": 64, "weight_decay_steps": ("0.1@3",)},
            "weight_decay_steps does not go with optim.width_rule mup",
        ),
    ],
)
def test_a_rule_without_what_it_scales_from_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        OptimConfig(name="muon", **options).scaled(64, 64)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"tied": True}, "width_rule is mup and model.tied is true"),
        ({"init": "gpt2"}, "width_rule is mup and model.init is gpt2"),
        ({"init": "neox"}, "width_rule is mup and model.init is neox"),
    ],
)
def test_mup_is_refused_where_rates_would_not_carry_over(model, said):
    with pytest.raises(ConfigError, match=said):
        tiny.train_config(model=model, optim={"width_rule": "mup", "width_reference": 16})


def test_a_tied_table_is_of_the_heads_group():
    optim = OptimConfig(
        lr=0.1, embed_lr=0.5, head_lr=0.25, embed_betas=(0.5, 0.5), head_betas=(0.8, 0.9),
        weight_decay=0.4, embed_weight_decay=0.7, warmup_steps=0, schedule="constant",
        clip_norm=0.0,
    )  # fmt: skip

    def moved(role):
        optimizer = make_optimizer(optim, 4, {"w": role})
        now, grads = {"w": jnp.full((2, 2), 3.0)}, {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
        state = optimizer.init(now)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, now)
            now, grads = jax.tree.map(jnp.add, now, updates), jax.tree.map(jnp.sin, grads)
        return np.asarray(now["w"])

    shape = model_shape(tiny.gpt_config(tied=True, positions="learned"))
    roles = params.roles(shape.placements)
    assert not np.array_equal(moved("head"), moved("embed"))
    np.testing.assert_array_equal(moved(roles["embed"]["table"]), moved("head"))
    assert roles["position_embed"]["table"] == "gain"  # beside it, as slow
    untied = params.roles(model_shape(tiny.gpt_config(positions="learned")).placements)
    assert untied["embed"]["table"] == untied["position_embed"]["table"] == "embed"
    # Counted once, as the head that it is.
    tied, plain = (matmul_params(tiny.gpt_config(tied=is_tied)) for is_tied in (True, False))
    assert tied == plain


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu", "baseline"])
def test_a_tied_model_learns_at_the_rates_of_a_preset(preset):
    """At the rate of its embedding the loss is at 30 to 40 after ten steps."""
    model = tiny.gpt_config(tied=True)
    shape, tokens = model_shape(model), jnp.asarray(tiny.tokens(4, 33))
    optim = replace(load([preset]).optim, warmup_steps=2).scaled(128, 32)[0]
    optimizer = make_optimizer(optim, 12, params.roles(shape.placements))
    start = nnx.to_pure_dict(nnx.state(GPT(model, rngs=nnx.Rngs(0))))

    def loss(now):
        whole = nnx.merge(shape.graph, now)
        log = jax.nn.log_softmax(whole.logits(whole(tokens[:, :-1])[0])[..., : tiny.VOCAB])
        return -jnp.mean(jnp.take_along_axis(log, tokens[:, 1:, None], axis=-1))

    def step(carry, _):
        now, state = carry
        value, grads = jax.value_and_grad(loss)(now)
        updates, state = optimizer.update(grads, state, now)
        return (jax.tree.map(jnp.add, now, updates), state), value

    run = jax.jit(lambda now: jax.lax.scan(step, (now, optimizer.init(now)), None, 12)[1])
    losses = np.asarray(run(start))
    assert losses.max() < 5 and losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("typed", ["--optim.embed-lr=0.1", "--optim.embed_weight_decay=0.1"])
def test_options_of_an_embedding_are_refused_where_it_is_the_head(typed):
    with pytest.raises(ConfigError, match=r"optim.embed_\w+ is typed but model.tied is true"):
        load(["cpu", "--model.tied=true", typed])
    assert load(["cpu", typed]).model.tied is False

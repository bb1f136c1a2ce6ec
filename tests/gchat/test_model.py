"""The GPT: initial loss, causality, independence of rows, options that change no result."""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import tiny
from gaia.errors import ConfigError
from gchat.config import TrainConfig, TrainingConfig, derive
from gchat.model import GPT, GPTConfig
from gchat.model_shape import flops_per_token, matmul_params

T = 32


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("init", ["zero_out", "gpt2", "neox"])
def test_loss_at_step_0_is_the_log_of_the_vocabulary(init, tied):
    config = tiny.gpt_config(init=init, tied=tied, dim=64)
    params = nnx.to_pure_dict(nnx.state(GPT(config, rngs=nnx.Rngs(0))))
    tokens = tiny.tokens(4, T + 1)
    # One graph for every init, so that the forward pass is compiled once.
    graph = tiny.graph_of(replace(config, init="gpt2"))
    logits = tiny.logits(graph, params, tokens[:, :-1])[..., : tiny.VOCAB]
    loss = reference.nll(np.asarray(logits, np.float64), tokens[:, 1:]).mean()
    assert loss == pytest.approx(math.log(tiny.VOCAB), rel=0.02)
    # The spread that the docstring of _matrix_inits states.
    q, out = (np.asarray(params["blocks"]["attn"][n]["kernel"]) for n in ("q", "out"))
    std = {
        "zero_out": (64**-0.5, 0.0),
        "gpt2": (0.02, 0.02 / 2),
        "neox": ((2 / (5 * 64)) ** 0.5, 2 / (2 * 8)),
    }[init]
    assert (q.std(), out.std()) == pytest.approx(std, rel=0.05, abs=1e-9)
    assert ("head" in params) != tied


GRADIENT_CASES = {
    # name: (config changes, how many positions back a token sees through all layers)
    "rope": ({}, T),
    "learned": ({"positions": "learned"}, T),
    "gqa": ({"kv_heads": 1, "qk_norm": False}, T),
    "window": ({"window_pattern": "S", "window": 4}, 2 * (4 - 1) + 1),
    "window_then_full": ({"window_pattern": "SL", "window": 4}, T),
}


@pytest.mark.parametrize(
    "case",
    [
        name if name in ("rope", "window") else pytest.param(name, marks=pytest.mark.slow)
        for name in GRADIENT_CASES
    ],
)
def test_causality_by_gradient(case):
    """d logits[t] / d embedding[s] is exactly 0 for s > t, and for s out of reach of the window."""
    changes, reach = GRADIENT_CASES[case]
    graph, params = tiny.make(tiny.gpt_config(**changes))
    tokens_1T = np.arange(T, dtype=np.int32)[None] + 7  # distinct, so a table row is a position

    @jax.jit
    def influence(t):
        def logit(table):
            model = nnx.merge(graph, params | {"embed": {"table": table}})
            x_1TD, _ = model(tokens_1T)
            vocab = model.logits(x_1TD)[0, :, : tiny.VOCAB]
            return jnp.sum(vocab[t] * jnp.sin(jnp.arange(tiny.VOCAB)))

        gradient = jax.grad(logit)(params["embed"]["table"])
        return jnp.abs(gradient[7 : 7 + T]).max(axis=1)

    for t in (0, 13, T - 1):
        by_position = np.asarray(influence(t))
        first = max(0, t - reach + 1)
        assert (by_position[t + 1 :] == 0).all()
        assert (by_position[:first] == 0).all()
        assert (by_position[first : t + 1] > 0).all()


def test_segments_see_only_themselves():
    """Documents packed in one row get the logits that each gets alone."""
    graph, params = tiny.make(tiny.gpt_config(window_pattern="SL", window=8))
    a, b = tiny.tokens(1, 20, seed=1), tiny.tokens(1, 12, seed=2)
    packed = tiny.logits(
        graph,
        params,
        np.concatenate([a, b], axis=1),
        np.concatenate([np.arange(20), np.arange(12)])[None].astype(np.int32),
        np.repeat([1, 2], [20, 12])[None].astype(np.int32),
    )
    pad_b = np.pad(b, ((0, 0), (0, 20)))
    alone_a = tiny.logits(graph, params, np.concatenate([a, b], axis=1))
    alone_b = tiny.logits(graph, params, pad_b)
    np.testing.assert_allclose(packed[:, :20], alone_a[:, :20], atol=1e-5)
    np.testing.assert_allclose(packed[:, 20:], alone_b[:, :12], atol=1e-5)


@functools.cache
def row_model():
    return tiny.make(tiny.gpt_config(kv_heads=1, window_pattern="SL", window=8))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), row=st.integers(0, 3))
def test_a_row_does_not_depend_on_the_batch(seed, row):
    graph, params = row_model()
    batch = tiny.tokens(4, T, seed=seed)
    whole = tiny.logits(graph, params, batch)[row, :, : tiny.VOCAB]
    alone = tiny.logits(graph, params, batch[row : row + 1])[0, :, : tiny.VOCAB]
    np.testing.assert_allclose(whole, alone, atol=1e-5)


def gradients(config, params, tokens):
    graph = tiny.graph_of(config)

    @jax.jit
    def run(params):
        def loss(params):
            model = nnx.merge(graph, params)
            logits = model.logits(model(tokens)[0])[..., : tiny.VOCAB]
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 3])

        return jax.value_and_grad(loss)(params)

    return run(params)


def test_remat_and_unroll_change_no_result():
    base = tiny.gpt_config()
    _, params = tiny.make(base)
    tokens = tiny.tokens(2, T)
    expected = gradients(base, params, tokens)
    kept = [{"remat": remat} for remat in ("dots", "attention", "full", "offload")]
    for changes in (*kept, {"scan_unroll": 2}):
        got = gradients(replace(base, **changes), params, tokens)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=str(changes))


@pytest.mark.parametrize(
    ("changes", "unroll"),
    [({}, 4), ({"remat": "full"}, 2), ({"remat": "dots", "window_pattern": "SL"}, 1)],
)
def test_with_remat_the_scan_runs_at_least_twice(changes, unroll):
    config = tiny.gpt_config(depth=4, scan_unroll=4, **changes)
    graph, shapes = tiny.graph_of(config), tiny.shapes_of(config)
    program = jax.make_jaxpr(lambda params, tokens: nnx.merge(graph, params)(tokens)[0])
    scans = [e for e in program(shapes, tiny.tokens(1, T)).eqns if e.primitive.name == "scan"]
    assert [scan.params["unroll"] for scan in scans] == [unroll]


def test_remat_of_a_pattern_as_long_as_the_depth_has_a_barrier_and_a_warning():
    def derived(**model):
        sizes = GPTConfig(depth=2, dim=32, head_dim=16, **model)
        config = TrainConfig(sizes, training=TrainingConfig(steps=200))
        return derive(config, vocab_size=tiny.VOCAB, padded_vocab_size=tiny.PADDED)

    for pattern, loops in (("SL", False), ("S", True)):
        config, said = derived(window_pattern=pattern, remat="full")
        graph, shapes = tiny.graph_of(config.model), tiny.shapes_of(config.model)
        program = jax.make_jaxpr(lambda p, t, g=graph: nnx.merge(g, p)(t)[0])
        assert f"prevent_cse={not loops}" in str(program(shapes, tiny.tokens(1, T)))
        assert ("warning: model.remat full saves no memory" in said[-1]) != loops
    assert "remat" not in derived(window_pattern="SL")[1][-1]


@pytest.mark.slow
def test_remat_saves_memory_however_far_the_scan_is_unrolled():
    """XLA would undo it in a loop that runs once."""

    def megabytes(**changes):
        # The width and the rows outweigh what does not grow with the depth.
        config = tiny.gpt_config(depth=4, dim=64, head_dim=64, hidden=256, **changes)
        graph, shapes = tiny.graph_of(config), tiny.shapes_of(config)
        tokens = jax.ShapeDtypeStruct((32, T), jnp.int32)

        def loss(params, tokens_BT):
            return jnp.mean(jnp.square(nnx.merge(graph, params)(tokens_BT)[0]))

        compiled = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    kept = megabytes(scan_unroll=4)
    assert megabytes(scan_unroll=4, remat="full") < 0.75 * kept


def test_dropout_is_a_function_of_its_key():
    graph, params = tiny.make(tiny.gpt_config(dropout=0.3))
    run = functools.partial(tiny.logits, graph, params, tiny.tokens(2, T), None, None)
    a, b = run(jax.random.key(1)), run(jax.random.key(1))
    assert (np.asarray(a) == np.asarray(b)).all()
    assert (np.asarray(a) != np.asarray(run(jax.random.key(2)))).any()
    assert (np.asarray(a) != np.asarray(tiny.logits(graph, params, tiny.tokens(2, T)))).any()


def test_learned_positions_tell_positions_apart():
    graph, params = tiny.make(tiny.gpt_config(positions="learned"))
    tokens = tiny.tokens(1, T)
    usual = tiny.logits(graph, params, tokens, np.arange(T, dtype=np.int32)[None])
    shifted = tiny.logits(graph, params, tokens, np.full((1, T), 5, np.int32))
    np.testing.assert_allclose(usual[:, 5], tiny.logits(graph, params, tokens)[:, 5], atol=1e-5)
    assert np.abs(np.asarray(usual - shifted)[0, 0, : tiny.VOCAB]).max() > 1e-3


def test_bfloat16_compute_stays_close():
    config = tiny.gpt_config()
    graph, params = tiny.make(config)
    half = tiny.graph_of(replace(config, compute_dtype="bfloat16"))
    tokens = tiny.tokens(2, T)
    exact = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
    got = tiny.logits(half, params, tokens)
    assert got.dtype == jnp.float32
    error = np.asarray(got)[..., : tiny.VOCAB] - exact
    assert np.sqrt((error**2).mean()) < 0.03 * exact.std()


def test_depth_is_the_one_dial():
    config = GPTConfig(depth=12).derive(50_266, 50_304)
    s = config.sizes
    assert (s.dim, s.heads, s.kv_heads, s.hidden) == (768, 6, 6, 2048)
    assert (s.vocab, s.padded_vocab, s.window) == (50_266, 50_304, 512)
    shapes = tiny.shapes_of(tiny.gpt_config(kv_heads=1))
    kernels = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key == "kernel"
    ]
    assert matmul_params(tiny.gpt_config(kv_heads=1)) == sum(kernels)
    # 6 per parameter and, in each layer, 12 T/2 per head dim; a window of T counts the same.
    c = tiny.gpt_config()
    assert flops_per_token(c) == 6 * matmul_params(c) + 2 * 12 * (T / 2) * 32
    assert flops_per_token(replace(c, window_pattern="S", window=T)) == flops_per_token(c)


@pytest.mark.parametrize(
    ("depth", "hidden"),
    # 8/3 of 64 per layer, rounded up: 683, 2,048, 3,414, 4,096, 5,462
    [(4, 768), (12, 2048), (20, 3584), (24, 4096), (32, 5632)],
)
def test_large_hidden_sizes_divide_over_256_devices(depth, hidden):
    derived = GPTConfig(depth=depth).derive(50_266, 50_304).sizes.hidden
    assert derived == hidden and (hidden % 256 == 0 or hidden <= 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, "model.seq_len is 0"),
        ({"depth": 0}, "model.depth is 0"),
        ({"head_dim": 15, "dim": 30}, "model.head_dim is 15"),
        ({"heads": 3, "kv_heads": 2}, "model.kv_heads is 2"),
        ({"depth": 4, "window_pattern": "SSL"}, "'SSL' does not tile depth 4"),
        ({"window_pattern": "LX"}, "model.window_pattern is 'LX'"),
        ({"window_pattern": ""}, "model.window_pattern is ''"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"vocab_size": 50}, "model.vocab_size is 50"),
        ({"padded_vocab_size": 64}, "model.padded_vocab_size is 64"),
        ({"window": 0, "window_pattern": "S"}, "model.window is 0"),
        ({"hidden": -8}, "model.hidden is -8"),
        ({"scan_unroll": 0}, "model.scan_unroll is 0"),
    ],
)
def test_sizes_that_cannot_work_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny.gpt_config(**changes)

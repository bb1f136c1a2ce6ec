"""Weights and caches in fewer bytes: what is stored, what it costs, and the same texts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from gaia.kernels import cpu_rows
from gaia.kernels.cached_attention import (
    KVCache,
    attend_cache,
    empty_cache,
    write_and_attend,
    write_cache,
)
from gaia.kernels.packed import PackedTable, PerLayer, fp32_product, layer_of, pack
from gchat.engine.engine import Engine
from gchat.engine.requests import Request, SamplingConfig

rng = np.random.default_rng(0)
X_ND = rng.standard_normal((5, 48)).astype(np.float32)
W_DF = (rng.standard_normal((48, 40)) * np.linspace(0.01, 3, 40)).astype(np.float32)


def test_an_int8_product_of_xla_is_the_integers_own(monkeypatch):
    monkeypatch.setattr(cpu_rows, "available", lambda: False)
    packed = jax.jit(pack, static_argnums=1)(W_DF, "int8")
    scale_F = np.abs(W_DF).max(0) / np.float32(127)
    np.testing.assert_array_equal(packed.values.T, np.round(W_DF / scale_F))
    step_N = np.abs(X_ND).max(1, keepdims=True) / np.float32(127)
    integers = np.round(X_ND / step_N).astype(np.int64) @ np.asarray(packed.values, np.int64).T
    got = jax.jit(lambda x, w: fp32_product(x, w))(X_ND, packed)  # a trace of its own
    np.testing.assert_allclose(got, integers * step_N * scale_F, rtol=1e-6)
    error = np.abs(np.asarray(got) - X_ND @ W_DF) / np.linalg.norm(W_DF, axis=0)
    assert error.max() < 0.05 and np.abs(X_ND @ W_DF).max() > 1


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_products_do_not_depend_on_the_rows_beside_them(form):
    packed = jax.jit(pack, static_argnums=1)(W_DF, form)
    product = jax.jit(fp32_product)
    order = rng.permutation(len(X_ND))
    np.testing.assert_array_equal(
        np.asarray(product(X_ND, packed))[order], product(X_ND[order], packed)
    )
    lead = product(X_ND[:1].reshape(1, 1, -1), packed)
    assert lead.shape == (1, 1, 40)
    np.testing.assert_allclose(lead[0, 0], product(X_ND, packed)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_a_tied_table_is_kept_once_and_gives_rows_and_head(form):
    table = PackedTable(pack(jnp.asarray(W_DF), form))
    assert table[...] is table and table.T is table.head
    rows = table[jnp.array([[3, 39]])]
    assert rows.shape == (1, 2, 48)
    np.testing.assert_allclose(rows[0], W_DF.T[[3, 39]], rtol=0.01, atol=0.04)


def test_layers_are_taken_from_stacks_and_from_what_is_kept_apart():
    stacked = {"a": jnp.arange(6.0).reshape(3, 2)}
    apart = {"a": PerLayer(tuple(stacked["a"]))}
    for i in range(3):
        np.testing.assert_array_equal(layer_of(stacked, i)["a"], layer_of(apart, i)["a"])


# ── The cache ───────────────────────────────────────────────────────────────────────────────────

B, K, G, H, S = 2, 2, 3, 8, 256


def attention_by_hand(q_NH, k_SKH, v_SKH, window):
    """One query, at the last position of the keys, in float64."""
    first = max(0, len(k_SKH) - window) if window else 0
    out = np.empty((K * G, H))
    for head in range(K * G):
        k, v = k_SKH[first:, head // G].astype(np.float64), v_SKH[first:, head // G]
        score = k @ q_NH[head] / H**0.5
        weight = np.exp(score - score.max())
        out[head] = weight @ v / weight.sum()
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def filled(dtype, window, k_BTKH, v_BTKH, q_BNH, lengths_B):
    """Keys and values up to each row's length, and the attention of one query there."""
    positions_BT = jnp.broadcast_to(jnp.arange(k_BTKH.shape[1])[None], k_BTKH.shape[:2])
    cache = write_cache(empty_cache(B, K, S, H, dtype), k_BTKH, v_BTKH, positions_BT)
    return attend_cache(q_BNH[:, None], cache, lengths_B[:, None] - 1, window)[:, 0]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=B, max_size=B),
    window=st.sampled_from([None, 5]),
    dtype=st.sampled_from(["float32", "int8"]),
    seed=st.integers(0, 99),
)
def test_attention_over_blocks_is_attention_and_rows_are_alone(lengths, window, dtype, seed):
    draw = np.random.default_rng(seed)
    k, v = (draw.standard_normal((B, 200, K, H)).astype(np.float32) for _ in range(2))
    q = draw.standard_normal((B, K * G, H)).astype(np.float32)
    out = np.asarray(filled(dtype, window, k, v, q, np.array(lengths)))
    assert np.isfinite(out).all()  # also of idle rows
    for b, length in enumerate(lengths):
        if not length:
            continue
        expected = attention_by_hand(q[b], k[b, :length], v[b, :length], window)
        atol = 0.05 if dtype == "int8" else 1e-5
        np.testing.assert_allclose(out[b], expected, atol=atol)
    beside = np.array([lengths[0], 200])  # the other row has come further: more blocks
    if lengths[0]:
        np.testing.assert_array_equal(filled(dtype, window, k, v, q, beside)[0], out[0])


@settings(max_examples=25, deadline=None)
@given(
    firsts=st.lists(st.integers(-1, 530), min_size=B, max_size=B),
    tokens=st.sampled_from([1, 5, 300]),
    dtype=st.sampled_from(["float32", "int8"]),
)
def test_what_is_written_lies_at_its_positions_and_nothing_else_changes(firsts, tokens, dtype):
    """Over the edge of two chunks (at 256), beyond the end, and not at all for idle rows."""
    many, slots = B, 512
    draw = np.random.default_rng(tokens)
    before = empty_cache(many, K, slots, H, dtype)
    before = jax.tree.map(lambda a: jnp.asarray(draw.integers(1, 100, a.shape), a.dtype), before)
    new = draw.standard_normal((many, tokens, K, H)).astype(np.float32)
    positions = np.array(firsts)[:, None] + np.arange(tokens)[None]
    after = writing(before, new, new, positions.astype(np.int32))
    whole = np.concatenate(before.k, axis=2).astype(np.float32)
    assert whole.shape == (many, K, slots, H) and [c.shape[2] for c in before.k] == [256, 256]
    for b, first in enumerate(firsts):
        for t in range(tokens if first >= 0 else 0):
            if first + t < slots:
                whole[b, :, first + t] = stored(new[b, t], dtype)
    np.testing.assert_array_equal(np.concatenate(after.k, axis=2), whole)


writing = jax.jit(write_cache)


def stored(x_KH, dtype):
    if dtype == "float32":
        return x_KH
    return np.round(x_KH / (np.abs(x_KH).max(-1, keepdims=True) / np.float32(127)))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    ("tokens", "window"),
    [(1, None), (3, 4), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((3, None), (1, 100)))],
)
def test_the_loop_for_few_tokens_does_what_xla_does(dtype, tokens, window, monkeypatch):
    """Over the edge of two chunks, at the first position and the last, and in an idle row."""
    draw = np.random.default_rng(tokens)
    firsts = np.array([0, 254, 400, 512 - tokens, -1], np.int32)
    old = draw.standard_normal((len(firsts), 512, K, H)).astype(np.float32)
    slots = np.broadcast_to(np.arange(512, dtype=np.int32), old.shape[:2])
    cache = writing(empty_cache(len(firsts), K, 512, H, dtype), old, -old, slots)
    k, v = (draw.standard_normal((len(firsts), tokens, K, H)).astype(np.float32) for _ in range(2))
    q = draw.standard_normal((len(firsts), tokens, K * G, H)).astype(np.float32)
    asked = q, k, v, cache, firsts[:, None] + np.arange(tokens, dtype=np.int32), window
    out, after = jax.jit(write_and_attend, static_argnums=5)(*asked)
    alone = (a[1:2] for a in (q, k, v))
    second = jax.tree.map(lambda a: a[1:2], cache), asked[4][1:2], window
    one, _ = jax.jit(write_and_attend, static_argnums=5)(*alone, *second)
    np.testing.assert_array_equal(one[0], out[1])  # to the bit
    monkeypatch.setattr(cpu_rows, "available", lambda: False)
    there, written = jax.jit(lambda *more: write_and_attend(*more, window))(*asked[:-1])
    np.testing.assert_allclose(out[:4], there[:4], rtol=1e-5, atol=1e-5)
    assert not np.array_equal(out[:4], there[:4])  # or the loop did not run
    for mine, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(written), strict=True):
        np.testing.assert_allclose(mine[:4], theirs[:4], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    ("first", "tokens"),
    [
        (250, 16),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in ((0, 16), (500, 12), (300, 1))),
    ],
)
def test_a_piece_of_one_row_s_prompt_touches_that_row_alone(dtype, first, tokens):
    """Over the edge of two chunks too: what a cache of that row alone gives, to the bit."""
    draw = np.random.default_rng(tokens)
    old = draw.standard_normal((3, 512, K, H)).astype(np.float32)
    slots = np.broadcast_to(np.arange(512, dtype=np.int32), old.shape[:2])
    cache = writing(empty_cache(3, K, 512, H, dtype), old, -old, slots)
    k, v = (draw.standard_normal((1, tokens, K, H)).astype(np.float32) for _ in range(2))
    q = draw.standard_normal((1, tokens, K * G, H)).astype(np.float32)
    positions = first + np.arange(tokens, dtype=np.int32)[None]

    @jax.jit
    def attend(cache):  # in two: few tokens of a cache without `row` take the loop
        after = write_cache(cache, k, v, positions)
        return attend_cache(q, after, positions, None), after

    out, after = attend(cache._replace(row=jnp.int32(1)))
    there, written = attend(jax.tree.map(lambda a: a[1:2], cache))
    np.testing.assert_array_equal(out, there)
    after = after._replace(row=None)
    for mine, theirs, was in zip(*map(jax.tree.leaves, (after, written, cache)), strict=True):
        np.testing.assert_array_equal(mine[1:2], theirs)
        np.testing.assert_array_equal(mine[::2], was[::2])


def test_many_rows_are_written_as_few_are():
    """Above a number of rows XLA's scatter writes, below it one update per row."""
    many = 12
    new = rng.standard_normal((many, 1, K, H)).astype(np.float32)
    positions = rng.integers(-1, 90, (many, 1)).astype(np.int32)
    write = jax.jit(write_cache)
    whole = write(empty_cache(many, K, 128, H, jnp.float32), new, new, positions)
    for start in range(0, many, 4):
        rows = slice(start, start + 4)
        part = write(empty_cache(4, K, 128, H, jnp.float32), new[rows], new[rows], positions[rows])
        np.testing.assert_array_equal(whole.k[0][rows], part.k[0])
    assert isinstance(whole, KVCache) and not whole.k_scale


# ── Through the engine ──────────────────────────────────────────────────────────────────────────


@functools.cache
def model(tied):
    return tiny.make(tiny.gpt_config(seq_len=64, tied=tied, kv_heads=1))


def logprobs(tied, **options):
    """Log-probabilities of a fixed continuation's tokens, greedy by the fp32 engine."""
    engine = Engine(*model(tied), seq_len=64, stop_ids=(), slots=2, piece=16, **options)
    asked = Request([*range(30)], 20, SamplingConfig(0.0), logprobs=5)
    events = list(engine.submit(asked))
    return [dict(p.top) for e in events for p in e.logprobs]


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("options", "close"),
    [
        ({"weights": "bfloat16"}, 0.05),
        ({"weights": "int8", "kv": "int8"}, 0.25),
    ],
)
def test_formats_change_log_probabilities_little(tied, options, close):
    plain, changed = logprobs(tied), logprobs(tied, **options)
    first, other = plain[0], changed[0]  # the same prompt before it
    common = set(first) & set(other)
    assert len(common) >= 3
    differences = [abs(first[i] - other[i]) for i in common]
    # A table of unit variance as head makes logits sqrt(dim) as large, their rounding with them.
    assert 0 < max(differences) < close * (4 if tied else 1)


def test_weights_are_kept_in_the_format_and_its_bytes():
    graph, params = model(False)

    def engine_bytes(weights):
        engine = Engine(graph, params, seq_len=64, stop_ids=(), weights=weights)
        matrices = (engine._params["blocks"], engine._params["head"])
        return sum(a.nbytes for a in jax.tree.leaves(matrices))

    whole, half, quarter = map(engine_bytes, ("float32", "bfloat16", "int8"))
    assert whole * 0.5 < half < whole * 0.53
    assert whole * 0.25 < quarter < whole * 0.35  # scales and gains stay fp32
    assert nnx.merge(graph, params).config.compute_dtype == "float32"
    assert engine_bytes(None) == whole

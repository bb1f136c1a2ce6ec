"""Attention against the formula in float64 NumPy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaia.errors import ConfigError
from gaia.kernels.attention import attention, reference_attention


def numpy_mask(T, S, *, causal, window, segments, B):
    t, s = np.arange(T)[:, None] + S - T, np.arange(S)[None]
    seen = np.ones((T, S), bool)
    if causal:
        seen &= s <= t
    if window is not None:
        seen &= s > t - window
    seen = np.broadcast_to(seen, (B, T, S))
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    return seen


def numpy_attention(q, k, v, do, seen, scale):
    """Output and gradients, float64, one head at a time."""
    B, _T, N, _ = q.shape
    G = N // k.shape[2]
    o, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b in range(B):
        for n in range(N):
            qh, kh, vh, doh = q[b, :, n], k[b, :, n // G], v[b, :, n // G], do[b, :, n]
            score = np.where(seen[b], scale * qh @ kh.T, -np.inf)
            p = np.exp(score - score.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            o[b, :, n] = p @ vh
            dp = doh @ vh.T
            ds = p * (dp - (p * dp).sum(1, keepdims=True)) * scale
            dq[b, :, n] = ds @ kh
            dk[b, :, n // G] += ds.T @ qh
            dv[b, :, n // G] += p.T @ doh
    return o, dq, dk, dv


def inputs(B, T, S, N, K, H, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H))
    return [rng.standard_normal(shape) for shape in shapes]


CASES = {
    # name: (B, T, S, N, K, H, options, segment boundaries)
    "mha": (2, 64, 64, 3, 3, 16, {}, None),
    "blocks": (2, 512, 512, 2, 2, 16, {}, None),
    "ragged": (1, 300, 300, 2, 2, 8, {}, None),
    "one_token": (2, 1, 1, 2, 1, 8, {}, None),
    "gqa": (2, 260, 260, 6, 2, 16, {}, None),
    "mqa": (1, 130, 130, 4, 1, 8, {}, None),
    "window": (2, 400, 400, 2, 2, 8, {"window": 100}, None),
    "window_one": (1, 200, 200, 2, 1, 8, {"window": 1}, None),
    "window_over": (1, 200, 200, 2, 1, 8, {"window": 1000}, None),
    "segments": (2, 300, 300, 4, 2, 8, {}, (5, 130, 256)),
    "segments_window": (2, 300, 300, 2, 2, 8, {"window": 40}, (128, 200)),
    "suffix": (2, 140, 333, 2, 1, 8, {}, None),
    "suffix_window": (1, 140, 333, 2, 1, 8, {"window": 50}, None),
    "full": (1, 150, 150, 2, 1, 8, {"causal": False}, None),
    "cross": (1, 100, 170, 2, 2, 8, {"causal": False}, None),
    "scale": (1, 140, 140, 2, 2, 8, {"scale": 0.7}, None),
}


RUNS = [(case, "xla") for case in CASES] + [
    (case, "reference") for case in ("gqa", "segments_window", "suffix_window", "cross")
]


@pytest.mark.parametrize(("case", "impl"), RUNS)
def test_matches_float64(case, impl):
    B, T, S, N, K, H, options, boundaries = CASES[case]
    q, k, v, do = inputs(B, T, S, N, K, H)
    segments = None
    if boundaries is not None:
        segments = np.searchsorted(np.array(boundaries), np.arange(T), side="right")
        segments = np.stack([segments, segments // 2])[:B].astype(np.int32)
    seen = numpy_mask(
        T,
        S,
        causal=options.get("causal", True),
        window=options.get("window"),
        segments=segments,
        B=B,
    )
    expected = numpy_attention(q, k, v, do, seen, options.get("scale", H**-0.5))

    @jax.jit
    def value_and_grads(q, k, v, do):
        def f(q, k, v):
            return attention(q, k, v, segment_ids_BT=segments, impl=impl, **options)

        o, vjp = jax.vjp(f, q, k, v)
        return o, *vjp(do)

    got = value_and_grads(*(jnp.asarray(x, jnp.float32) for x in (q, k, v, do)))
    for name, a, b in zip(("o", "dq", "dk", "dv"), got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5, err_msg=name)


def test_bfloat16_stays_close_and_keeps_dtype():
    q, k, v, do = (jnp.asarray(x, jnp.bfloat16) for x in inputs(1, 256, 256, 4, 2, 32))

    @jax.jit
    def run(q, k, v, do):
        o, vjp = jax.vjp(lambda *a: attention(*a, impl="xla"), q, k, v)
        return o, *vjp(do)

    exact = [np.asarray(x, np.float64) for x in (q, k, v, do)]
    seen = numpy_mask(256, 256, causal=True, window=None, segments=None, B=1)
    for got, expected in zip(
        run(q, k, v, do), numpy_attention(*exact, seen, 32**-0.5), strict=True
    ):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.06, rtol=0.03)


def test_large_scores_do_not_overflow():
    q, k, v, do = (jnp.asarray(100 * x, jnp.float32) for x in inputs(1, 160, 160, 1, 1, 8))

    @jax.jit
    def value_and_grads(q, k, v, do):
        o, vjp = jax.vjp(attention, q, k, v)
        return o, *vjp(do)

    o, *gradients = value_and_grads(q, k, v, do)
    assert all(bool(jnp.isfinite(x).all()) for x in (o, *gradients))
    np.testing.assert_allclose(o, reference_attention(q, k, v), rtol=1e-4, atol=1e-3)


def test_no_gradient_from_the_future():
    q, k, v, _ = (jnp.asarray(x, jnp.float32) for x in inputs(1, 300, 300, 2, 1, 8))
    t = 140

    def loss(k, v):
        return attention(q, k, v)[:, : t + 1].sum()

    for g in jax.jit(jax.grad(loss, (0, 1)))(k, v):
        assert float(jnp.abs(g[:, t + 1 :]).max()) == 0.0
        assert float(jnp.abs(g[:, t]).max()) > 0.0


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 8, 3, 4), (1, 8, 2, 4)), {}, "3 query heads over 2"),
        (((1, 8, 2, 4), (1, 4, 2, 4)), {}, "S >= T"),
        (((1, 8, 2, 4), (1, 8, 2, 4)), {"window": 0}, "window is 0"),
        (((1, 8, 2, 4), (1, 8, 2, 4)), {"window": 4, "causal": False}, "causal only"),
        (((1, 8, 2, 4), (1, 9, 2, 4)), {"segment_ids_BT": jnp.zeros((1, 8))}, "segment ids"),
    ],
)
def test_refuses_what_does_not_fit(shapes, options, message):
    q, k = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ConfigError, match=message):
        attention(q, k, k, **options)

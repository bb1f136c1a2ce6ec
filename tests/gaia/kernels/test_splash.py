"""Splash attention, interpreted on CPU, against the formula: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaia.kernels import splash as splash_module
from gaia.kernels.attention import reference_attention
from gaia.kernels.splash import fits, splash_attention

T, H = 256, 64


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Two blocks of queries by two of keys: a row that fits into one shows little."""
    monkeypatch.setattr(splash_module, "block", lambda H: T // 2)
    splash_module._kernel.cache_clear()
    yield
    splash_module._kernel.cache_clear()


def inputs(N, K, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((1, T, N, H), (1, T, K, H), (1, T, K, H), (1, T, N, H))
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def segments():
    return jnp.asarray(np.searchsorted([5, 130, 200], np.arange(T), side="right")[None], jnp.int32)


def compare(N, K, options, ids=None, parts=1):
    q, k, v, do = inputs(N, K)

    def splash(q, k, v):
        out = []
        for i in range(parts):
            rows = slice(i * T // parts, (i + 1) * T // parts)
            out.append(
                splash_attention(
                    q[:, rows],
                    k,
                    v,
                    segment_ids=None if ids is None else (ids[:, rows], ids),
                    part=None if parts == 1 else (jnp.int32(i), parts),
                    scale=H**-0.5,
                    name="kept",
                    interpret=True,
                    **{"causal": True, "window": None} | options,
                )
            )
        return jnp.concatenate(out, axis=1)

    def reference(q, k, v):
        return reference_attention(q, k, v, segment_ids_BT=ids, scale=H**-0.5, **options)

    def value_and_grads(f):
        o, vjp = jax.vjp(f, q, k, v)
        return o, *vjp(do)

    got, expected = (jax.jit(value_and_grads, static_argnums=0)(f) for f in (splash, reference))
    for name, a, b in zip(("o", "dq", "dk", "dv"), got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5, rtol=5e-5, err_msg=name)


def test_packed_grouped_heads_in_a_window():
    compare(2, 1, {"window": 100}, segments())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 1}], ids=str)
def test_masks(options):
    compare(2, 2, options)


def test_parts_of_a_row_are_the_row():
    compare(1, 1, {}, parts=2)


@pytest.mark.slow
def test_packed_parts_in_a_window():
    compare(2, 1, {"window": 40}, segments(), parts=2)


def test_which_sizes_fit():
    assert fits(2048, 2048, 128) and fits(128, 512, 64)
    assert not fits(100, 128, 64) and not fits(128, 100, 64) and not fits(128, 128, 16)

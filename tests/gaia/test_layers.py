"""Layers against the formulas in NumPy float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import reference
from gaia import layers
from gaia.kernels import rotary


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def close(got, expected, tolerance=2e-6):
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected, atol=tolerance, rtol=tolerance
    )


def blank(_key, shape):
    """An initialiser that compiles nothing; the tests set the weights."""
    return jnp.asarray(np.zeros(shape, np.float32))


def with_weights(module, weights):
    """Sets parameters by dotted path."""
    for path, value in weights.items():
        owner = module
        *parents, leaf = path.split(".")
        for name in parents:
            owner = getattr(owner, name)
        getattr(owner, leaf)[...] = f32(value)
    return module


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm(scale):
    x, gain = scale * random(2, 3, 16), random(16, seed=1)
    norm = with_weights(layers.RMSNorm(16, eps=1e-5), {"scale": gain})
    close(norm(f32(x)), reference.rms_norm(x, gain, 1e-5), 2e-6 if scale >= 1 else 1e-5)


def test_rms_norm_computes_in_fp32_under_bf16():
    x = jnp.asarray(100 * random(4, 64), jnp.bfloat16)
    got = layers.RMSNorm(64, eps=1e-6)(x)
    expected = reference.rms_norm(np.asarray(x, np.float64), np.ones(64), 1e-6)
    assert got.dtype == jnp.bfloat16
    # One rounding to bf16 at the end (at most 2^-8), none before it.
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8)


@partial(jax.jit, static_argnums=2)
def rotate(x, positions, theta):
    return rotary.apply_rope(x, rotary.rope_table(positions, x.shape[-1], theta))


@pytest.mark.parametrize("theta", [10_000.0, 1e6])
def test_rope(theta):
    x, positions = random(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 100, 1000, 2047, 3]])
    got = rotate(f32(x), positions, theta)
    # fp32 angles near 2047 are off by up to 2^-14, 6e-5 radians, and a little more by theta^x.
    close(got, reference.rope(x, positions, theta), 5e-4)
    close(got[0], reference.rope(x, positions, theta)[0])


def test_rope_scores_depend_on_distance_only():
    q, k = f32(random(1, 1, 1, 16)), f32(random(1, 1, 1, 16, seed=1))

    def score(at_q, at_k):
        turned = [rotate(x, np.array([[at]]), 10_000.0) for x, at in ((q, at_q), (k, at_k))]
        return np.vdot(*turned)

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_and_rotation_in_one_pass(dtype):
    """Against the two one after the other: in NumPy, and by automatic differentiation."""
    x, dy = (jnp.asarray(random(2, 5, 3, 8, seed=s), dtype) for s in (1, 2))
    gain = f32(1 + 0.3 * random(8, seed=3))
    positions = np.array([[0, 1, 2, 3, 4], [7, 100, 1000, 2047, 3]])
    table = rotary.rope_table(positions, 8, 10_000.0)

    def fused(x, gain):
        return rotary.normalize_and_rotate(x, gain, table, 1e-6)

    def one_by_one(x, gain):
        return rotary.apply_rope(layers.rms_norm(x, gain, 1e-6), table)

    y, pull = jax.vjp(fused, x, gain)
    x64, gain64 = np.asarray(x, np.float64), np.asarray(gain, np.float64)
    expected = reference.rope(reference.rms_norm(x64, gain64, 1e-6), positions, 10_000.0)
    tolerance = 5e-4 if dtype == "float32" else 2**-7
    assert y.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=tolerance, atol=tolerance)
    dx, dgain = pull(dy)
    x32, dy32 = x.astype(jnp.float32), dy.astype(jnp.float32)
    expected_dx, expected_dgain = jax.vjp(one_by_one, x32, gain)[1](dy32)
    assert dx.dtype == x.dtype and dgain.dtype == gain.dtype
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    np.testing.assert_allclose(
        np.asarray(dx, np.float32), expected_dx, rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(dgain, expected_dgain, rtol=1e-5, atol=1e-5)


def test_rope_angles_are_fp32_under_bf16():
    """At position 1001 bf16 angles would be off by radians; the result is rounded only once."""
    x = jnp.asarray(random(1, 1, 1, 8), jnp.bfloat16)
    positions = np.array([[1001]])
    got = rotate(x, positions, 10_000.0)
    expected = reference.rope(np.asarray(x, np.float64), positions, 10_000.0)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.01)


def test_swiglu():
    x, gate, up, down = random(2, 4, 8), random(8, 24), random(8, 24, seed=1), random(24, 8)
    module = layers.SwiGLU(8, 24, init=blank, init_out=blank, rngs=nnx.Rngs(0))
    weights = {"gate.kernel": gate, "up.kernel": up, "down.kernel": down}
    graph, params = nnx.split(with_weights(module, weights))
    got = jax.jit(lambda params, x: nnx.merge(graph, params)(x))(params, f32(x))
    close(got, reference.swiglu(x, gate, up, down), 2e-5)


def attention_module(heads, kv_heads, qk_norm):
    return layers.Attention(
        32,
        heads,
        kv_heads,
        8,
        qk_norm=qk_norm,
        eps=1e-6,
        init=blank,
        init_out=blank,
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "qk_norm", "theta", "window"),
    [
        (4, 4, False, 10_000.0, None),  # Llama
        (4, 2, True, 10_000.0, None),  # Qwen3: grouped queries, qk-norm
        (4, 1, True, None, 3),  # no rotation, a sliding window
    ],
)
def test_attention(heads, kv_heads, qk_norm, theta, window):
    x = random(2, 7, 32)
    w = {
        "q": 0.3 * random(32, heads * 8, seed=1),
        "k": 0.3 * random(32, kv_heads * 8, seed=2),
        "v": 0.3 * random(32, kv_heads * 8, seed=3),
        "out": 0.3 * random(heads * 8, 32, seed=4),
    }
    weights = {f"{name}.kernel": value for name, value in w.items()}
    if qk_norm:
        w |= {"q_norm": random(8, seed=5), "k_norm": random(8, seed=6)}
        weights |= {"q_norm.scale": w["q_norm"], "k_norm.scale": w["k_norm"]}
    module = with_weights(attention_module(heads, kv_heads, qk_norm), weights)
    graph, params = nnx.split(module)

    @jax.jit
    def run(params, x):
        table = None if theta is None else rotary.rope_table(jnp.arange(7)[None], 8, theta)
        return nnx.merge(graph, params)(x, table, window=window)[0]

    expected = reference.attention(
        x, w, heads=heads, kv_heads=kv_heads, head_dim=8, theta=theta, window=window
    )
    close(run(params, f32(x)), expected, 1e-5)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((64, 64))
    dropped = np.asarray(jax.jit(lambda x, key: layers.dropout(x, 0.25, key))(x, jax.random.key(0)))
    assert np.mean(dropped == 0.0) == pytest.approx(0.25, abs=0.03)
    assert float(dropped.max()) == pytest.approx(1 / 0.75)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
    assert layers.dropout(x, 0.25, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x

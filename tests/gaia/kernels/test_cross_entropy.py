"""Chunked cross-entropy against the formula in float64 NumPy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaia.errors import ConfigError
from gaia.kernels.cross_entropy import cross_entropy, token_nll


def numpy_cross_entropy(x, head, targets, vocab_size, ignore_index=-1):
    """(nll [N], dx, dhead) of the summed loss, float64."""
    logits = x @ head[:, :vocab_size]
    top = logits.max(1, keepdims=True)
    log_z = top + np.log(np.exp(logits - top).sum(1, keepdims=True))
    valid = targets != ignore_index
    safe = np.where(valid, targets, 0)
    nll = np.where(valid, log_z[:, 0] - logits[np.arange(len(x)), safe], 0.0)
    dlogits = np.exp(logits - log_z)
    dlogits[np.arange(len(x)), safe] -= 1.0
    dlogits *= valid[:, None]
    dhead = np.zeros_like(head)
    dhead[:, :vocab_size] = x.T @ dlogits
    return nll, dlogits @ head[:, :vocab_size].T, dhead


def make(N=70, D=24, V=128, vocab=101, seed=0, ignore_index=-1, ignored=0.3):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, vocab, N)
    targets[rng.random(N) < ignored] = ignore_index
    return rng.standard_normal((N, D)), rng.standard_normal((D, V)), targets.astype(np.int32)


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("chunk", [1, 16, 33, 70, 1000])
@pytest.mark.parametrize("ignore_index", [-1, 5])
def test_matches_float64(chunk, ignore_index):
    x, head, targets = make(ignore_index=ignore_index)
    nll, dx, dhead = numpy_cross_entropy(x, head, targets, 101, ignore_index)
    options = dict(vocab_size=101, chunk=chunk, ignore_index=ignore_index)

    @jax.jit
    def run(x, head):
        def loss(x, head):
            return cross_entropy(x, head, targets, **options)

        (total, count), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, head)
        return total, count, *grads, loss(x, head)[0]

    total, count, got_dx, got_dhead, forward_only = run(*f32(x, head))
    assert int(count) == int((targets != ignore_index).sum())
    np.testing.assert_allclose(total, nll.sum(), rtol=1e-6)
    np.testing.assert_allclose(forward_only, nll.sum(), rtol=1e-6)
    np.testing.assert_allclose(got_dx, dx, atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(got_dhead, dhead, atol=2e-5, rtol=2e-5)
    assert float(jnp.abs(got_dhead[:, 101:]).max()) == 0.0
    per_token = token_nll(*f32(x, head), targets, **options)
    np.testing.assert_allclose(per_token, nll, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("chunk", [16, 1000])
def test_weights_scale_each_tokens_loss_and_gradient(chunk):
    x, head, targets = make()
    weights = np.random.default_rng(1).random(len(x))
    weights[::5] = 0.0
    nll, _, _ = numpy_cross_entropy(x, head, targets, 101)
    # The gradient is linear in the weights: one token at a time, in float64.
    dx, dhead = np.zeros_like(x), np.zeros_like(head)
    for i, weight in enumerate(weights):
        one = slice(i, i + 1)
        _, dx_i, dhead_i = numpy_cross_entropy(x[one], head, targets[one], 101)
        dx[one], dhead = weight * dx_i, dhead + weight * dhead_i
    (w,) = f32(weights)

    @jax.jit
    def run(x, head):
        def loss(x, head):
            return cross_entropy(x, head, targets, w, vocab_size=101, chunk=chunk)[0]

        return *jax.value_and_grad(loss, (0, 1))(x, head), loss(x, head)

    total, (got_dx, got_dhead), forward_only = run(*f32(x, head))
    np.testing.assert_allclose(total, (weights * nll).sum(), rtol=1e-6)
    np.testing.assert_allclose(forward_only, total, rtol=1e-6)
    np.testing.assert_allclose(got_dx, dx, atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(got_dhead, dhead, atol=2e-5, rtol=2e-5)


def test_cotangent_and_accumulation_inside_scan():
    """The mean over all unmasked tokens, whether in one batch or accumulated over four."""
    x, head, targets = make(N=96, ignored=0.0)
    targets[np.arange(96) % 24 < np.repeat([0, 20, 3, 11], 24)] = -1  # uneven masks
    count = (targets != -1).sum()
    nll, _, dhead = numpy_cross_entropy(x, head, targets, 101)
    x, head = f32(x, head)

    @jax.jit
    def accumulated(head):
        def micro(carry, batch):
            def loss(h):
                return cross_entropy(batch[0], h, batch[1], vocab_size=101, chunk=10)[0] / count

            value, grad = jax.value_and_grad(loss)(head)
            return (carry[0] + value, carry[1] + grad), None

        zeros = (jnp.zeros(()), jnp.zeros_like(head))
        batches = (x.reshape(4, 24, -1), jnp.asarray(targets).reshape(4, 24))
        return jax.lax.scan(micro, zeros, batches)[0]

    value, grad = accumulated(head)
    np.testing.assert_allclose(value, nll.sum() / count, rtol=1e-6)
    np.testing.assert_allclose(grad, dhead / count, atol=1e-6, rtol=2e-5)


def test_tied_head_gets_the_gradient_of_the_table():
    x, head, targets = make()
    _, _, dhead = numpy_cross_entropy(x, head, targets, 101)
    x, table = f32(x, head.T)

    def loss(table):
        return cross_entropy(x, table.T, targets, vocab_size=101)[0]

    np.testing.assert_allclose(jax.grad(loss)(table), dhead.T, atol=2e-5, rtol=2e-5)


def test_bfloat16_compute_accumulates_in_float32():
    x, head, targets = make(N=256, D=64, V=256, vocab=256)
    x16, head32 = jnp.asarray(x, jnp.bfloat16), jnp.asarray(head, jnp.float32)
    exact = np.asarray(x16, np.float64), np.asarray(head32.astype(jnp.bfloat16), np.float64)
    nll, dx, dhead = numpy_cross_entropy(*exact, targets, 256)

    def loss(x, h):
        return cross_entropy(x, h, targets, vocab_size=256, chunk=64)[0]

    value, (got_dx, got_dhead) = jax.value_and_grad(loss, (0, 1))(x16, head32)
    assert value.dtype == jnp.float32 and got_dhead.dtype == jnp.float32
    assert got_dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, nll.sum(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(got_dx, np.float64), dx, atol=0.03, rtol=0.02)
    np.testing.assert_allclose(got_dhead, dhead, atol=0.05, rtol=0.02)


def test_all_ignored_is_zero_and_extreme_logits_are_finite():
    x, head, targets = make()
    x32, head32 = f32(1e4 * x, head)

    def loss(x, h, t):
        return cross_entropy(x, h, t, vocab_size=101)[0]

    value, grads = jax.value_and_grad(loss, (0, 1))(x32, head32, jnp.full_like(targets, -1))
    assert float(value) == 0.0 and all(float(jnp.abs(g).max()) == 0.0 for g in grads)
    value, grads = jax.value_and_grad(loss, (0, 1))(x32, head32, jnp.asarray(targets))
    assert np.isfinite(value) and all(bool(jnp.isfinite(g).all()) for g in grads)


def test_full_logits_never_exist():
    """At N = 512, V = 4096 no buffer of the compiled gradient holds N x V floats."""
    x, head = jnp.zeros((512, 8)), jnp.zeros((8, 4096))
    targets = jnp.zeros(512, jnp.int32)

    def loss(x, h):
        return cross_entropy(x, h, targets, vocab_size=4096, chunk=64)[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, head).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 4096 * 4


def test_refuses_a_vocabulary_larger_than_the_head():
    x, head, targets = make()
    with pytest.raises(ConfigError, match="vocab_size is 129"):
        cross_entropy(*f32(x, head), targets, vocab_size=129)
    with pytest.raises(ConfigError, match="chunk is 0"):
        token_nll(*f32(x, head), targets, vocab_size=101, chunk=0)

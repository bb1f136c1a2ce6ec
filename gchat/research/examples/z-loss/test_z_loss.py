"""z-loss: in the gradient, not in the loss that is reported."""

import jax
import jax.numpy as jnp
import numpy as np

from gaia.kernels.cross_entropy import Z_LOSS, cross_entropy

N, D, V, USED = 13, 8, 16, 11


def test_the_gradient_has_it_and_the_loss_has_not():
    keys = jax.random.split(jax.random.key(0), 3)
    # Large logits, so that the small weight is seen.
    x, head = 30 * jax.random.normal(keys[0], (N, D)), 3 * jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (N,), 0, USED)

    def nll(x, head, weight):
        logits = (x @ head)[:, :USED]
        log_z = jax.nn.logsumexp(logits, axis=1)
        gold = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return jnp.sum(log_z - gold + weight * log_z**2)

    def ours(x, head):
        return cross_entropy(x, head, targets, vocab_size=USED, chunk=5)[0]

    loss, got = jax.value_and_grad(ours, (0, 1))(x, head)
    np.testing.assert_allclose(loss, nll(x, head, 0.0), rtol=1e-5)
    expected = jax.grad(nll, (0, 1))(x, head, Z_LOSS)
    without = jax.grad(nll, (0, 1))(x, head, 0.0)
    for a, b, c in zip(got, expected, without, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        assert float(jnp.abs(b - c).max()) > 0.01


def test_a_token_that_is_turned_down_pulls_the_normalizer_the_same_way():
    """Weights of DPO and RL may be negative; log(Z)^2 is added by their size."""
    keys = jax.random.split(jax.random.key(1), 4)
    x, head = 30 * jax.random.normal(keys[0], (N, D)), 3 * jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (N,), 0, USED)
    weights = jax.random.normal(keys[3], (N,))

    def ours(x, head):
        return cross_entropy(x, head, targets, weights, vocab_size=USED, chunk=5, temperature=0.7)[
            0
        ]

    def plain(x, head):
        logits = (x @ head)[:, :USED] / 0.7
        log_z = jax.nn.logsumexp(logits, axis=1)
        gold = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return jnp.sum(weights * (log_z - gold) + jnp.abs(weights) * Z_LOSS * log_z**2)

    got, expected = (jax.grad(f, (0, 1))(x, head) for f in (ours, plain))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)

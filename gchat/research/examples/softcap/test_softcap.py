"""The cap: in the loss with its gradient, in scores, and in the logits that are sampled from."""

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from gaia.kernels.cross_entropy import SOFTCAP, cross_entropy, token_nll

N, D, V, USED = 13, 8, 16, 11


def plain(x, head, targets, temperature=1.0):
    """Autodiff's own."""
    logits = SOFTCAP * jnp.tanh(x @ head / SOFTCAP)[:, :USED] / temperature
    nll = (
        jax.nn.logsumexp(logits, axis=1)
        - jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=1)[:, 0]
    )
    return jnp.where(targets >= 0, nll, 0.0)


def test_loss_gradients_and_scores():
    keys = jax.random.split(jax.random.key(0), 3)
    x, head = 3 * jax.random.normal(keys[0], (N, D)), 3 * jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (N,), -1, USED)

    def ours(x, head):
        return cross_entropy(x, head, targets, vocab_size=USED, chunk=5)[0]

    got, expected = (
        jax.value_and_grad(f, (0, 1))(x, head)
        for f in (ours, lambda x, head: plain(x, head, targets).sum())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)
    scores = token_nll(x, head, targets, vocab_size=USED, chunk=5)
    np.testing.assert_allclose(scores, plain(x, head, targets), rtol=1e-5, atol=1e-5)


def test_gradients_of_weighted_tokens_at_a_temperature():
    """RL divides what is capped by a temperature, and turns tokens down."""
    keys = jax.random.split(jax.random.key(1), 4)
    x, head = 3 * jax.random.normal(keys[0], (N, D)), 3 * jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (N,), -1, USED)
    weights = jax.random.normal(keys[3], (N,))

    def ours(x, head):
        return cross_entropy(x, head, targets, weights, vocab_size=USED, chunk=5, temperature=0.7)[
            0
        ]

    def expected(x, head):
        return (weights * plain(x, head, targets, 0.7)).sum()

    got, wanted = (jax.value_and_grad(f, (0, 1))(x, head) for f in (ours, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted)


def test_logits_that_are_sampled_from_are_capped():
    graph, params = tiny.make(tiny.gpt_config())
    params["head"]["kernel"] = 100 * params["head"]["kernel"]
    logits = np.asarray(tiny.logits(graph, params, tiny.tokens(1, 8)))
    assert np.abs(logits[..., : tiny.VOCAB]).max() <= SOFTCAP
    assert np.isneginf(logits[..., tiny.VOCAB :]).all()

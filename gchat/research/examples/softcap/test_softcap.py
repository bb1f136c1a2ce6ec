"""The cap: in the loss with its gradient, in scores, and in the logits that are sampled from."""

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from gaia.kernels.cross_entropy import SOFTCAP, cross_entropy, token_nll

N, D, V, USED = 13, 8, 16, 11


def plain(x, head, targets):
    """Autodiff's own."""
    logits = SOFTCAP * jnp.tanh(x @ head / SOFTCAP)[:, :USED]
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


def test_logits_that_are_sampled_from_are_capped():
    graph, params = tiny.make(tiny.gpt_config())
    params["head"]["kernel"] = 100 * params["head"]["kernel"]
    logits = np.asarray(tiny.logits(graph, params, tiny.tokens(1, 8)))
    assert np.abs(logits[..., : tiny.VOCAB]).max() <= SOFTCAP
    assert np.isneginf(logits[..., tiny.VOCAB :]).all()

"""Scalars of the stream: the plain model at 1 and 0, their starting values, and decoding."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from gaia.blend import Blend

import tiny
from gchat.model import GPT


def test_starting_values():
    model = GPT(tiny.gpt_config(depth=4), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(model.blocks.blend.scale[...], [1.15, 1.1167, 1.0833, 1.05], 1e-4)
    np.testing.assert_allclose(10 * model.blocks.blend.share[...], [0.2, 0.15, 0.1, 0.05], 1e-5)


def test_one_and_zero_are_the_plain_model(monkeypatch):
    graph, params = tiny.make(tiny.gpt_config())
    params["blocks"]["blend"] = {"scale": jnp.ones(2), "share": jnp.zeros(2)}
    tokens = tiny.tokens(2, 32)
    got = np.asarray(tiny.logits(graph, params, tokens))
    monkeypatch.setattr(Blend, "__call__", lambda self, x, x0: x)
    tiny.logits.clear_cache()
    plain = np.asarray(tiny.logits(graph, params, tokens))
    tiny.logits.clear_cache()
    np.testing.assert_array_equal(got, plain)


def test_decoding_gives_the_same_as_reading():
    graph, params = tiny.make(tiny.gpt_config())
    tokens = tiny.tokens(2, 6)
    read = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
    np.testing.assert_allclose(tiny.decoded(graph, params, tokens), read, atol=2e-4)


def test_the_scalars_gradients_are_summed_in_fp32():
    """A sum over the whole stream, which stands still in bf16 once it is large."""
    rng = np.random.default_rng(0)
    x, x0, slope = (jnp.asarray(rng.uniform(0, 1, (4, 512, 128)), jnp.bfloat16) for _ in range(3))

    @jax.jit
    def gradients(scale, share, x, x0, slope):
        def total(scale, share):
            blend = Blend()
            blend.scale[...], blend.share[...] = scale, share
            return jnp.sum((blend(x, x0) * slope).astype(jnp.float32))

        return jax.grad(total, (0, 1))(scale, share)

    got = gradients(jnp.float32(1.1), jnp.float32(0.02), x, x0, slope)
    x, x0, slope = (np.asarray(a, np.float64) for a in (x, x0, slope))
    np.testing.assert_allclose(got, [(x * slope).sum(), 10 * (x0 * slope).sum()], rtol=2e-3)

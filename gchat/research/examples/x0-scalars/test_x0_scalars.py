"""Scalars of the stream: the plain model at 1 and 0, their starting values, and decoding."""

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

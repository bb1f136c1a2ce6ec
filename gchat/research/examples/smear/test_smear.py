"""Smear: the token before, within a document, in a tree of prompts, and while decoding."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gaia.kernels.smear import Smear

import tiny
from gaia.errors import ConfigError
from gaia.kernels.cached_attention import empty_cache
from gaia.kernels.segments import Trie


@pytest.fixture
def smear():
    layer = Smear()
    rng = np.random.default_rng(0)
    layer.gate[...] = jnp.asarray(rng.standard_normal(24), jnp.float32)
    layer.scale[...] = jnp.array([0.03])
    return layer


X = np.random.default_rng(1).standard_normal((1, 6, 32)).astype(np.float32)


def expected(before, positions):
    gate = np.random.default_rng(0).standard_normal(24)
    share = 20 * 0.03 / (1 + np.exp(-(X[..., :24] @ gate)))
    return X + np.where(positions > 0, share, 0)[..., None] * X[:, before]


def test_the_token_before_of_its_own_document(smear):
    positions = np.array([[0, 1, 2, 0, 1, 2]])
    got = smear(jnp.asarray(X), positions, jnp.array([[1, 1, 1, 2, 2, 2]]))
    np.testing.assert_allclose(got, expected([0, 0, 1, 2, 3, 4], positions), rtol=1e-4, atol=1e-5)


def test_in_a_tree_it_is_the_ancestor(smear):
    """a b (c d) (e f): e continues b, as c does."""
    positions = jnp.array([[0, 1, 2, 3, 2, 3]])
    trie = Trie(jnp.array([[6, 6, 4, 4, 6, 6]]), positions)
    got = smear(jnp.asarray(X), positions, trie)
    wanted = expected([0, 0, 1, 2, 1, 4], np.asarray(positions))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_it_starts_as_nothing():
    np.testing.assert_array_equal(Smear()(jnp.asarray(X), np.arange(6)[None], None), X)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("ends", [(3, 4, 6), (255, 256, 257, 300)])  # the second chunk is at 256
def test_decoding_gives_the_same_as_reading(ends, dtype, smear):
    x = np.random.default_rng(2).standard_normal((1, ends[-1], 32)).astype(np.float32)
    cache = empty_cache(1, 2, 384, 16, jnp.dtype(dtype))
    pieces = []
    for begin, end in pairwise((0, *ends)):
        at = np.arange(begin, end, dtype=np.int32)[None]
        piece, cache = smear.cached(jnp.asarray(x[:, begin:end]), cache, jnp.asarray(at))
        pieces.append(np.asarray(piece))
    whole = smear(jnp.asarray(x), np.arange(ends[-1])[None], None)
    off = 0.02 if dtype == "int8" else 1e-5
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, atol=off)


def test_the_model_decodes_with_it():
    graph, params = tiny.make(tiny.gpt_config())
    tokens = tiny.tokens(2, 6)
    read = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
    np.testing.assert_allclose(tiny.decoded(graph, params, tokens), read, atol=2e-4)


def test_few_key_heads_are_refused():
    graph, params = tiny.make(tiny.gpt_config(kv_heads=1))
    with pytest.raises(ConfigError, match="keys of all heads"):
        tiny.decoded(graph, params, tiny.tokens(1, 2))
    assert nnx.merge(graph, params)(tiny.tokens(1, 4))[0].shape == (1, 4, 32)

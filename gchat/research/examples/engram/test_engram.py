"""Engram: pairs of tokens within a document, in a tree of prompts, and while decoding."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gaia.kernels.pair_memory import ROWS, Engram, pair_hash

import tiny
from gaia.errors import ConfigError
from gaia.kernels.cached_attention import empty_cache
from gaia.kernels.segments import Trie

VOCAB, DIM = 50, 32
X = np.random.default_rng(1).standard_normal((1, 6, DIM)).astype(np.float32)
TOKENS = np.array([[7, 3, 7, 3, 49, 0]])


@pytest.fixture
def engram():
    layer = Engram(VOCAB, DIM, rngs=nnx.Rngs(0))
    table = np.random.default_rng(0).standard_normal((ROWS * VOCAB, DIM))
    layer.table.table[...] = jnp.asarray(table, jnp.float32)
    return layer


def expected(layer, before, positions):
    rows = [mixed(TOKENS[0, b], t) % (ROWS * VOCAB) for b, t in zip(before, TOKENS[0], strict=True)]
    added = 0.05 * np.asarray(layer.table.table[...])[rows]
    return X + np.where(np.asarray(positions) > 0, 1, 0)[..., None] * added


def mixed(before, token):
    """The hash in Python's integers."""
    x = (int(before) * 2654435761 ^ int(token) * 2246822519) & 0xFFFFFFFF
    x = (x ^ x >> 15) * 3266489917 & 0xFFFFFFFF
    return x ^ x >> 13


def test_the_pairs_of_its_own_document(engram):
    positions = np.array([[0, 1, 2, 0, 1, 2]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2]])
    got = engram(jnp.asarray(X), jnp.asarray(TOKENS), positions, segments)
    np.testing.assert_allclose(got, expected(engram, [0, 0, 1, 2, 3, 4], positions), rtol=1e-6)


def test_in_a_tree_it_is_the_ancestor(engram):
    """a b (c d) (e f): e makes a pair with b, as c does."""
    positions = jnp.array([[0, 1, 2, 3, 2, 3]])
    trie = Trie(jnp.array([[6, 6, 4, 4, 6, 6]]), positions)
    got = engram(jnp.asarray(X), jnp.asarray(TOKENS), positions, trie)
    np.testing.assert_allclose(got, expected(engram, [0, 0, 1, 2, 1, 4], positions), rtol=1e-6)


def test_it_starts_as_nothing():
    layer = Engram(VOCAB, DIM, rngs=nnx.Rngs(0))
    got = layer(jnp.asarray(X), jnp.asarray(TOKENS), np.arange(6)[None], None)
    np.testing.assert_array_equal(got, X)


def test_pairs_spread_over_the_rows_and_order_counts():
    a, b = np.meshgrid(np.arange(300), np.arange(300), indexing="ij")
    rows = np.asarray(pair_hash(jnp.asarray(a), jnp.asarray(b))) % 1500
    counts = np.bincount(rows.ravel(), minlength=1500)
    assert ((counts - 60) ** 2 / 60).sum() < 1500 + 4 * 3000**0.5  # chi squared, 1,499 degrees
    assert (rows != rows.T).mean() > 0.98


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("ends", [(3, 4, 6), (255, 256, 257, 300)])  # the second chunk is at 256
def test_decoding_gives_the_same_as_reading(ends, dtype, engram):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((1, ends[-1], DIM)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (1, ends[-1])))
    cache = empty_cache(1, 2, 384, 16, jnp.dtype(dtype))
    pieces = []
    for begin, end in pairwise((0, *ends)):
        at = np.arange(begin, end, dtype=np.int32)[None]
        piece, cache = engram.cached(x[:, begin:end], tokens[:, begin:end], cache, jnp.asarray(at))
        pieces.append(np.asarray(piece))
    whole = engram(x, tokens, np.arange(ends[-1])[None], None)
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole)


def test_the_model_decodes_with_it():
    graph, params = tiny.make(tiny.gpt_config())
    place = params["engram"]["table"]
    noise = np.random.default_rng(0).standard_normal(place["table"].shape)
    place["table"] = jnp.asarray(noise, jnp.float32)
    tokens = tiny.tokens(2, 6)
    read = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
    np.testing.assert_allclose(tiny.decoded(graph, params, tokens), read, atol=2e-4)


def test_short_keys_are_refused():
    graph, params = tiny.make(tiny.gpt_config(kv_heads=1))
    with pytest.raises(ConfigError, match="ids in 20 dims"):
        tiny.decoded(graph, params, tiny.tokens(1, 2))
    assert nnx.merge(graph, params)(tiny.tokens(1, 4))[0].shape == (1, 4, 32)

"""Value embeddings: the gate's formula, decoding, and no matrix of Muon's."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import tiny
from gchat.model import ValueEmbed
from gchat.model_shape import matmul_params, model_shape


def test_it_is_the_formula():
    config = tiny.gpt_config()
    layer = ValueEmbed(config, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 3, 32))
    tokens = np.array([[5, 7, 5]])
    gate = 3 / (1 + np.exp(-x[..., :12] @ np.full((12, 2), 0.01)))
    rows = np.asarray(layer.table.table[...])[tokens].reshape(1, 3, 2, 16)
    got = layer(jnp.asarray(tokens), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, gate[..., None] * rows, rtol=1e-5)


def test_tables_are_tables():
    shape = model_shape(tiny.gpt_config())
    roles = {p.name: p.role for p in shape.parameters if "value_embed" in p.name}
    assert roles == {
        "blocks.value_embed.gate": "gain",
        "blocks.value_embed.table.table": "embed",
    }
    blocks, head = 2 * (4 * 32 * 32 + 3 * 32 * 64), 32 * tiny.PADDED
    assert matmul_params(tiny.gpt_config()) == blocks + head


def test_decoding_gives_the_same_as_reading():
    graph, params = tiny.make(tiny.gpt_config(kv_heads=1))
    tokens = tiny.tokens(2, 6)
    read = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
    np.testing.assert_allclose(tiny.decoded(graph, params, tokens), read, atol=2e-4)

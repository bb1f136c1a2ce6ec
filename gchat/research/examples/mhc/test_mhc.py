"""mHC: what the mixing keeps, and that it is the plain model where it does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gaia.hyper_connections import HyperConnection, sinkhorn

import tiny
from gaia import hyper_connections
from gchat import model
from gchat.model import GPT, Block


@pytest.fixture(autouse=True)
def fresh():
    tiny.forget_models()
    yield
    tiny.forget_models()


@pytest.mark.parametrize("scale", [0.01, 0.3])
def test_rows_and_columns_of_the_mixing_sum_to_one(scale):
    """The identity's bias of 2, and on it what depends on the input: 0.01 when training begins."""
    logits = scale * jax.random.normal(jax.random.key(0), (50, 4, 4, 4)) + 2 * jnp.eye(4)
    mixing = np.asarray(jax.jit(sinkhorn)(logits))
    assert np.abs(mixing.sum(-1) - 1).max() < 1e-3
    assert np.abs(mixing.sum(-2) - 1).max() < 1e-3
    assert mixing.min() >= 0


def test_a_stack_of_mixings_keeps_the_streams_size():
    """Products of doubly stochastic matrices have operator norm 1; the paper's bound is 1.6."""
    layers = sinkhorn(jax.random.normal(jax.random.key(1), (1, 8, 4, 4)))[0]
    product = np.linalg.multi_dot(np.asarray(layers))
    gains = np.abs(product).sum(-1).max(), np.abs(product).sum(-2).max()
    assert max(gains) <= 1.6


def plain_and_streams(monkeypatch, streams, **changes):
    """Logits of the model with its connections, and of the same weights wired plainly."""
    monkeypatch.setattr(hyper_connections, "STREAMS", streams)
    monkeypatch.setattr(model, "STREAMS", streams)
    graph, params = tiny.make(tiny.gpt_config(**changes))
    for name in ("attn_streams", "mlp_streams"):
        if streams > 1:
            mixed = params["blocks"][name]
            start = HyperConnection(32, rngs=nnx.Rngs(0)).bias[...]
            mixed["bias"] = jnp.broadcast_to(start, mixed["bias"].shape)
            mixed["gain"] = jnp.zeros_like(mixed["gain"])
    tokens = tiny.tokens(2, 32)
    got = jax.jit(lambda p: nnx.merge(graph, p).logits(nnx.merge(graph, p)(tokens)[0]))(params)

    def add(self, x_BTnD, sublayer):
        y_BTD, more = sublayer(x_BTnD[:, :, 0])
        return x_BTnD + y_BTD[:, :, None], more

    monkeypatch.setattr(HyperConnection, "__call__", add)
    monkeypatch.setattr(model, "STREAMS", 1)
    plain = jax.jit(lambda p: nnx.merge(graph, p).logits(nnx.merge(graph, p)(tokens)[0]))(params)
    real = np.isfinite(np.asarray(plain))
    return np.asarray(got)[real], np.asarray(plain)[real]


def test_without_gain_it_is_the_plain_model(monkeypatch):
    got, plain = plain_and_streams(monkeypatch, 4)
    np.testing.assert_allclose(got, plain, atol=1e-5)


def test_one_stream_is_the_plain_model_bit_for_bit(monkeypatch):
    got, plain = plain_and_streams(monkeypatch, 1)
    np.testing.assert_array_equal(got, plain)


def test_streams_part_and_last_through_the_stack():
    """With gain the streams are alike before the first block only."""
    config = tiny.gpt_config()
    graph, params = tiny.make(config)
    seen = []
    block = Block.__call__
    try:
        Block.__call__ = lambda self, x, *a, **k: (seen.append(x.shape), block(self, x, *a, **k))[1]
        jax.eval_shape(lambda p: nnx.merge(graph, p)(tiny.tokens(2, 32))[0], params)
    finally:
        Block.__call__ = block
    assert set(seen) == {(2, 32, 4, 32)}
    gpt: GPT = nnx.merge(graph, params)
    x = jnp.repeat(gpt.embed(tiny.tokens(1, 8), jnp.float32)[:, :, None], 4, axis=2)
    first = jax.tree.map(lambda a: a[0], nnx.to_pure_dict(nnx.state(gpt.blocks)))
    layer: Block = nnx.merge(nnx.graphdef(gpt.blocks), first)
    after, _ = layer(x, None)
    assert float(jnp.abs(after[:, :, 0] - after[:, :, 1]).max()) > 1e-4


def test_decoding_gives_the_same_as_reading():
    graph, params = tiny.make(tiny.gpt_config())
    tokens = tiny.tokens(1, 6)
    read = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
    np.testing.assert_allclose(tiny.decoded(graph, params, tokens), read, atol=2e-4)

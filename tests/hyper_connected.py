"""Tests that every idea with several residual streams must pass, run in the tree of such an idea.

`gaia.hyper_connections` is a file of these ideas' patches, and no part of main.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gaia.hyper_connections import HyperConnection

import tiny
from gaia import hyper_connections
from gchat import model
from gchat.model import GPT, Block


class KeepsThePlainModel:
    """Tests of a model with streams against the same weights wired plainly."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        tiny.forget_models()
        yield
        tiny.forget_models()

    def test_without_gain_it_is_the_plain_model(self, monkeypatch):
        got, plain = with_streams_and_plain(monkeypatch, 4)
        np.testing.assert_allclose(got, plain, atol=1e-5)

    def test_one_stream_is_the_plain_model_bit_for_bit(self, monkeypatch):
        got, plain = with_streams_and_plain(monkeypatch, 1)
        np.testing.assert_array_equal(got, plain)

    def test_streams_part_and_last_through_the_stack(self, monkeypatch):
        """With gain the streams are alike before the first block only."""
        graph, params = tiny.make(tiny.gpt_config())
        seen, block = [], Block.__call__

        def noted(self, x_BTnD, *more, **named):
            seen.append(x_BTnD.shape)
            return block(self, x_BTnD, *more, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Block, "__call__", noted)
            jax.eval_shape(lambda p: nnx.merge(graph, p)(tiny.tokens(2, 32))[0], params)
        assert set(seen) == {(2, 32, 4, 32)}
        gpt: GPT = nnx.merge(graph, params)
        x_BTnD = jnp.repeat(gpt.embed(tiny.tokens(1, 8), jnp.float32)[:, :, None], 4, axis=2)
        first = jax.tree.map(lambda a: a[0], nnx.to_pure_dict(nnx.state(gpt.blocks)))
        layer: Block = nnx.merge(nnx.graphdef(gpt.blocks), first)
        after_BTnD, _ = layer(x_BTnD, None)
        assert float(jnp.abs(after_BTnD[:, :, 0] - after_BTnD[:, :, 1]).max()) > 1e-4

    def test_its_own_products_are_in_fp32_on_every_device(self):
        """At an accelerator's default they would be in bf16 passes."""
        layer = HyperConnection(32, rngs=nnx.Rngs(0))
        traced = jax.make_jaxpr(lambda x: layer(x, lambda y: (y, None))[0])(jnp.ones((1, 2, 4, 32)))
        products = [e.params["precision"] for e in traced.eqns if e.primitive.name == "dot_general"]
        highest = jax.lax.Precision.HIGHEST
        assert len(products) >= 3 and set(products) == {(highest, highest)}

    def test_decoding_gives_the_same_as_reading(self):
        graph, params = tiny.make(tiny.gpt_config())
        tokens = tiny.tokens(1, 6)
        read = np.asarray(tiny.logits(graph, params, tokens))[..., : tiny.VOCAB]
        np.testing.assert_allclose(tiny.decoded(graph, params, tokens), read, atol=2e-4)


def with_streams_and_plain(monkeypatch, streams):
    """Logits of a model whose connections have no gain, and of its weights wired plainly."""
    monkeypatch.setattr(hyper_connections, "STREAMS", streams)
    monkeypatch.setattr(model, "STREAMS", streams)
    graph, params = tiny.make(tiny.gpt_config())
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

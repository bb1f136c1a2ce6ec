"""ReLU squared: the formula, as many parameters as the gate had, and decoding."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import tiny
from gaia.layers import ReluSquared, SwiGLU, normal
from gchat.model_shape import model_shape


def test_it_is_the_formula():
    layer = ReluSquared(8, 12, init=normal(1.0), init_out=normal(1.0), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 8))
    up, down = (np.asarray(part.kernel[...], np.float64) for part in (layer.up, layer.down))
    expected = np.maximum(x @ up, 0) ** 2 @ down
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-4)


def test_it_has_as_many_parameters_as_the_gate():
    config = tiny.gpt_config(hidden=64)
    ours = sum(p.size for p in model_shape(config).parameters if ".mlp." in p.name)
    gated = nnx.eval_shape(
        lambda: SwiGLU(32, 64, init=normal(1.0), init_out=normal(1.0), rngs=nnx.Rngs(0))
    )
    count = sum(part.kernel.size for part in (gated.gate, gated.up, gated.down))
    assert ours == config.depth * count

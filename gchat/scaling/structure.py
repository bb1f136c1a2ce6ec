"""Blocks that the memory estimate was calibrated on, told from others by their structure.

The factors of `calibration.json` were fitted to programs whose blocks carry one residual stream
and hold one attention and one MLP, each behind a norm. What the backward pass keeps of any other
block is not known from its parameters.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import nnx

from gchat.model import GPT, GPTConfig
from gchat.model_shape import model_shape
from gchat.scaling.counts import goes_back, in_attention, layer_matrices

_TOKENS = 128


@lru_cache(maxsize=256)
def calibrated(model: GPTConfig) -> bool:
    """Says if the blocks of a derived configuration are of the calibrated kind."""
    return _has_one_attention_and_one_mlp(model) and _carries_one_stream(model)


def _has_one_attention_and_one_mlp(model: GPTConfig) -> bool:
    """MLP: products from D to F, one or more, and one product from F back to D."""
    shape, D = model_shape(model), model.sizes.dim
    matrices = layer_matrices(model)
    attention = [p for p in matrices if in_attention(model, p)]
    others = [p for p in matrices if not in_attention(model, p)]
    back = [p.layer_shape for p in others if goes_back(p)]
    wide = {p.layer_shape for p in others if not goes_back(p)}
    gains = [p for p in shape.parameters if p.layers and p.role == "gain"]
    norms = [p.layer_shape for p in gains if not in_attention(model, p)]
    return (
        len(shape.heads) == 1
        and len(attention) == 4
        and len(back) == 1
        and wide == {(D, back[0][0])}
        and all("tensor" in p.placement.axes for p in matrices)
        and norms == [(D,), (D,)]
    )


def _carries_one_stream(model: GPTConfig) -> bool:
    """The scan over layers hands on [B, T, D] in the compute dtype, and nothing else."""
    shape = model_shape(model)

    def forward(arrays, tokens_BT):
        gpt: GPT = nnx.merge(shape.graph, arrays)
        return gpt(tokens_BT)

    T = min(_TOKENS, model.seq_len)
    traced = jax.make_jaxpr(forward)(shape.arrays, jax.ShapeDtypeStruct((1, T), jnp.int32))
    steps = model.depth // len(model.window_pattern)
    for equation in traced.jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == steps:
            first, count = equation.params["num_consts"], equation.params["num_carry"]
            carried = [v.aval for v in equation.invars[first : first + count]]
            expected = ((1, T, model.sizes.dim), jnp.dtype(model.compute_dtype))
            return [(a.shape, a.dtype) for a in carried] == [expected]
    return False

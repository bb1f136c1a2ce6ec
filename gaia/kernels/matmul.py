"""Products of activations with weight matrices, with gradients in the fastest layout.

The gradient of a weight contracts the token dims of both operands, x^T @ dy. On CPU that form is
not one XLA's fast matrix library takes: autodiff's version of it leaves a transpose of the larger
operand inside the elementwise code around it, about 10% of a training step. Here `x` is
transposed, once for all the weights it meets (gchat/EXPERIMENTS.md, "CPU training step").

On a mesh (`gaia.parallel`) a weight is a shard: the product gathers it in the compute dtype, in
the forward pass and once more in the backward pass (it is never kept), and scatters the sum of
its gradient in fp32. What is split over `tensor` is added up where the other split ends.

Shapes: N tokens, D in, F out.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gaia import parallel

PRODUCT = "product"
"""Name of every result of `project` to `jax.checkpoint` policies.

A policy by primitive (`dots_saveable`) does not see through a custom gradient;
`save_only_these_names(PRODUCT)` keeps the products and recomputes the rest.
"""


Split = Literal["out", "in", "neither"]
"""The dim of a matrix [in, out] that is split over `tensor`."""


def project(
    x: jax.Array, *weights_DF: jax.Array, split: Split = "out", name: str | None = PRODUCT
) -> tuple[jax.Array, ...]:
    """x @ w for each weight.

    Args:
        x: [..., D]; its dtype is the compute dtype.
        weights_DF: matrices [D, F], cast to the compute dtype; their gradients are accumulated
            in fp32 and come in their own dtype. On a mesh, this device's shards of them.
        split: which of their dims is split over `tensor`: `out` takes a whole `x` and gives this
            device's part of F; `in` takes a part of D and gives the sum over all parts; with
            `neither` every device of `tensor` computes the same.
        name: of the results to `jax.checkpoint` policies; None where the caller names them.

    Returns:
        One [..., F] per weight, in the dtype of `x`.
    """
    ys: Any = _project(split, x, *weights_DF)
    return tuple(ys) if name is None else tuple(checkpoint_name(y, name) for y in ys)


def _whole(w_DF: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The weight in the compute dtype, gathered from the devices that share it."""
    return parallel.all_gather(w_DF.astype(dtype), parallel.WEIGHTS, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(split: Split, x, *weights_DF):
    ys = tuple(x @ _whole(w, x.dtype) for w in weights_DF)
    return parallel.psum(ys, ("tensor",)) if split == "in" else ys


def _project_fwd(split: Split, x, *weights_DF):
    return _project(split, x, *weights_DF), (x, weights_DF)


def _project_bwd(split: Split, saved, dys):
    x, weights_DF = saved
    dx, *rest = (dy @ _whole(w, dy.dtype).T for dy, w in zip(dys, weights_DF, strict=True))
    for part in rest:
        dx += part
    if split == "out":
        dx = parallel.psum(dx, ("tensor",))
    dws = jax.lax.platform_dependent(x, dys, cpu=_weight_grads_cpu, default=_weight_grads)
    dws = (parallel.psum_scatter(dw, parallel.WEIGHTS, 0) for dw in dws)
    return dx, *(dw.astype(w.dtype) for dw, w in zip(dws, weights_DF, strict=True))


_project.defvjp(_project_fwd, _project_bwd)


def _weight_grads(x, dys):
    tokens = tuple(range(x.ndim - 1))  # no reshape: it would gather dims sharded apart
    dims = ((tokens, tokens), ((), ()))
    return [jax.lax.dot_general(x, dy, dims, preferred_element_type=jnp.float32) for dy in dys]


def _weight_grads_cpu(x, dys):
    x_ND = x.reshape(-1, x.shape[-1])
    dys = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
    if x_ND.shape[1] > sum(dy.shape[1] for dy in dys):  # transpose whichever is smaller
        products = [
            jnp.matmul(transpose(dy), x_ND, preferred_element_type=jnp.float32) for dy in dys
        ]
        # The barrier keeps the outer transpose out of the product: folded in, both operands stand
        # on their heads, and XLA has no such bf16 product on CPUs without bf16 instructions.
        return [jax.lax.optimization_barrier(product).T for product in products]
    x_DN = transpose(x_ND)
    return [jnp.matmul(x_DN, dy, preferred_element_type=jnp.float32) for dy in dys]


def transpose(x_ND: jax.Array) -> jax.Array:
    """[N, D] -> [D, N], materialised on CPU, left to the compiler's layouts elsewhere."""
    return jax.lax.platform_dependent(
        x_ND,
        # Without the barrier XLA folds the transpose back into the product that follows.
        cpu=lambda x: jax.lax.optimization_barrier(x.T),
        default=lambda x: x.T,
    )

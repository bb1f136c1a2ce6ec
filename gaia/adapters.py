"""Low-rank adapters beside matrices, trained while the matrices stay (LoRA, Hu et al. 2021).

    y = x @ kernel + scale * (x @ a) @ b

`b` begins at zero, so a model with fresh adapters is the model without. They lie on the mesh as
their matrix does: `a` along its first dim, `b` along its second, whole along the rank.

Shapes: D in, R rank, F out.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gaia import parallel
from gaia.kernels.matmul import project
from gaia.layers import Linear, normal
from gaia.params import parameter, placement_of


class Adapter(nnx.Module):
    """The product that is added to a linear layer's.

    Args:
        linear: the layer.
        rank: R.
        scale: alpha / rank.
        rngs: for `a`, N(0, 1/D).
    """

    def __init__(self, linear: Linear, rank: int, scale: float, *, rngs: nnx.Rngs) -> None:
        d_in, d_out = linear.kernel.shape[-2:]
        dims_in, dims_out = placement_of(linear.kernel).dims
        a = normal(d_in**-0.5)(rngs.params(), (d_in, rank))
        self.a = parameter(a, (dims_in, None), role="adapter")
        self.b = parameter(jnp.zeros((rank, d_out), jnp.float32), (None, dims_out), role="adapter")
        self.split, self.scale = linear.split, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., F] in the dtype of `x`; on a mesh, this device's part of F."""
        split = "in" if self.split == "in" else "neither"
        (h,) = project(x, self.a[...], split=split, name=None)
        if self.split == "out":
            h = _shared(h)
        return self.scale * (h @ self.b[...].astype(h.dtype))


@jax.custom_vjp
def _shared(h: jax.Array) -> jax.Array:
    """The same on every device of `tensor`, each of which knows a part of its gradient."""
    return h


_shared.defvjp(lambda h: (h, None), lambda _, dh: (parallel.psum(dh, ("tensor",)),))


def attach(
    model: nnx.Module, targets: Sequence[str], rank: int, scale: float, *, rngs: nnx.Rngs
) -> None:
    """Puts an adapter beside each linear layer of these names, in the order of the model."""
    for path, layer in list(nnx.iter_modules(model)):
        if path and path[-1] in targets and isinstance(layer, Linear):
            layer.adapter = Adapter(layer, rank, scale, rngs=rngs)


def merged(params: Any, scale: float) -> Any:
    """Parameters of the model without adapters that computes the same: kernel + scale * a @ b."""
    if not isinstance(params, Mapping):
        return params
    rest = {name: merged(value, scale) for name, value in params.items() if name != "adapter"}
    adapter = params.get("adapter")
    if adapter is not None:
        rest["kernel"] = _added(params["kernel"], adapter["a"], adapter["b"], scale)
    return rest


@partial(jax.jit, static_argnums=3)
def _added(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    return kernel + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

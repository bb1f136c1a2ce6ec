"""Parameters, and the one statement with which each of them is born.

    self.kernel = parameter(init(key, (d, f)), (WEIGHTS, "tensor"), role="matrix")

The statement says how the array lies on the mesh and what it is to the optimizer. All that must
know reads it here: shardings, the checks of a mesh, sums of gradients, optimizer groups, counts.

It speaks of the array as its layer makes it. Blocks are stacked later (`nnx.vmap`), which puts
dims in front; these lie whole on every device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gaia.errors import GaiaError
from gaia.parallel import AXES, TOKENS, check_divides, psum, spread

Role = Literal["matrix", "head", "embed", "gain", "adapter"]
Dim = str | tuple[str, ...] | None
"""Mesh axes that one dim is split over, the outermost first; None where it is whole."""


class UnplacedParameter(GaiaError):
    """A parameter that says too little, or what cannot be, about how it lies on the mesh."""


@dataclass(frozen=True)
class Placement:
    """A parameter's place on the mesh, and its role for the optimizer."""

    dims: tuple[tuple[str, ...], ...]
    """Mesh axes of each dim, without the dims of a stack."""
    role: Role
    within_split: bool = False
    """Whole on every device of `tensor`, each of which uses it on its own heads or hidden units."""

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes that it is split over."""
        return tuple(axis for dim in self.dims for axis in dim)

    def spec(self, ndim: int, mesh: Mesh) -> P:
        """The PartitionSpec of an array of `ndim` dims; those of a stack come first."""
        return P(*[None] * (ndim - len(self.dims)), *spread(self.dims, mesh))


WHOLE = Placement((), "gain")
"""An array that every device holds whole, whatever its dims."""


def parameter(
    value: jax.Array, dims: tuple[Dim, ...], *, role: Role, within_split: bool = False
) -> nnx.Param:
    """A parameter with its statement.

    Args:
        value: its first value, fp32.
        dims: mesh axes of each dim. Matrices lie on `WEIGHTS` along one dim, and on `tensor`
            along the dim of heads, hidden units or vocabulary.
        role: `matrix` and `head` multiply activations, `embed` is a table of rows that is no head,
            `adapter` is trained in place of all others (`gaia.adapters`), `gain` is all else.
        within_split: say so where it is whole over `tensor` but used between a product with
            split `out` and the next with split `in`: each device then knows the gradient of its
            own heads or hidden units only, and these are summed.

    Raises:
        UnplacedParameter: not one entry for each dim, an axis that the mesh has not, or one axis
            on two dims.
    """
    axes = tuple((dim,) if isinstance(dim, str) else dim or () for dim in dims)
    placement = Placement(axes, role, within_split)
    shape = list(value.shape)
    if len(dims) != len(shape):
        raise UnplacedParameter(
            f"a parameter {shape} states mesh axes of {len(dims)} dims", "state one for each dim"
        )
    for axis in placement.axes:
        if axis not in AXES[1:]:
            raise UnplacedParameter(
                f"a parameter {shape} lies on mesh axis {axis!r}", f"use {', '.join(AXES[1:])}"
            )
        if placement.axes.count(axis) > 1:
            raise UnplacedParameter(
                f"a parameter {shape} claims mesh axis {axis} twice: {dims}",
                "split one dim over it",
            )
    if within_split and "tensor" in placement.axes:
        raise UnplacedParameter(
            f"a parameter {shape} is split over tensor and whole within the split", "choose one"
        )
    return nnx.Param(value, placement=placement)


def placement_of(param: nnx.Variable) -> Placement:
    """The statement of a parameter that was made by `parameter`."""
    return param.get_metadata("placement")


class Described(NamedTuple):
    """A parameter without its array."""

    name: str
    """Path in the model, such as blocks.mlp.up.kernel."""
    shape: tuple[int, ...]
    itemsize: int
    """Bytes of one element."""
    placement: Placement

    @property
    def role(self) -> Role:
        """Its group for the optimizer."""
        return self.placement.role

    @property
    def size(self) -> int:
        """Elements, of all layers of a stack together."""
        return math.prod(self.shape)

    @property
    def layers(self) -> int | None:
        """Layers that are stacked in it; None where it is no part of a stack."""
        stacked = self.shape[: len(self.shape) - len(self.placement.dims)]
        return math.prod(stacked) if stacked else None

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Its shape in one layer, as it was born."""
        return self.shape[len(self.shape) - len(self.placement.dims) :]

    @property
    def is_matrix(self) -> bool:
        """True for what multiplies activations; a table does where it is the head."""
        return self.role in ("matrix", "head")


def describe(model: nnx.Module) -> tuple[Described, ...]:
    """Every parameter of a model, of arrays or of shapes alone.

    Raises:
        UnplacedParameter: one was not made by `parameter`.
    """
    described = []
    for path, param in nnx.to_flat_state(nnx.state(model)):
        name = ".".join(map(str, path))
        if not param.has_metadata("placement"):
            raise UnplacedParameter(
                f"parameter {name} {list(param.shape)} does not say how it lies on the mesh",
                "make it with gaia.params.parameter",
            )
        placement = placement_of(param)
        described.append(Described(name, param.shape, param.dtype.itemsize, placement))
    return tuple(described)


def check_parameters(described: tuple[Described, ...], mesh: Mesh) -> None:
    """Raises ConfigError where a dim of a parameter does not divide over the mesh."""
    for param in described:
        for size, axes in zip(param.layer_shape, param.placement.dims, strict=True):
            name = f"a dim of {param.name} {list(param.layer_shape)}"
            check_divides(mesh, name, size, axes, "choose a multiple, or another mesh")


def placements(model: nnx.Module) -> Any:
    """The tree of the model's parameters with their statements in place of arrays."""
    return nnx.to_pure_dict(nnx.state(model), extract_fn=placement_of)


def roles(placements: Any) -> Any:
    """The same with what each is to the optimizer."""
    return jax.tree.map(lambda placement: placement.role, placements)


def trained(tree: Any, placements: Any) -> Any:
    """The part of a tree like the parameters that is trained: adapters, or all where none are."""
    if not any(place.role == "adapter" for place in jax.tree.leaves(placements)):
        return tree
    return _adapters(tree, placements)


def _adapters(tree: Any, placements: Any) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for name, place in placements.items():
        if not isinstance(place, Mapping):
            if place.role == "adapter":
                part[name] = tree[name]
        elif below := _adapters(tree[name], place):
            part[name] = below
    return part


def with_trained(tree: Any, part: Any) -> Any:
    """A tree with the part that `trained` gave, or another one like it, in its place."""
    if not isinstance(part, Mapping):
        return part
    return {**tree, **{name: with_trained(tree[name], value) for name, value in part.items()}}


def specs(placements: Any, arrays: Any, mesh: Mesh) -> Any:
    """The PartitionSpec of every array (or shape) by its statement."""
    return jax.tree.map(lambda place, x: place.spec(x.ndim, mesh), placements, arrays)


def optimizer_placements(optimizer: optax.GradientTransformation, placements: Any, params: Any):
    """For every array of the optimizer's state the statement of the parameter that it follows.

    `WHOLE` for those that follow none: counters, and arrays of another shape than the parameter.

    Args:
        optimizer: its `init` maps over the tree of parameters, as those of optax do.
        placements: of the parameters.
        params: their shapes.
    """

    def follow(leaf: Any, place: Placement, param: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        return place if leaf.shape == param.shape else WHOLE

    return optax.tree_map_params(
        optimizer,
        follow,
        jax.eval_shape(optimizer.init, params),
        placements,
        params,
        transform_non_params=lambda _: WHOLE,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )


def shardings(placements: Any, arrays: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every array (or shape) by its statement."""
    return jax.tree.map(
        lambda place, x: NamedSharding(mesh, place.spec(x.ndim, mesh)), placements, arrays
    )


def sum_gradients(grads: Any, placements: Any) -> Any:
    """Each gradient's sum over the devices that know a part of it, inside of `per_device`.

    What is split over an axis has been summed over it by the `psum_scatter` of its layer.
    """

    def one(grad: jax.Array, place: Placement) -> jax.Array:
        axes = [axis for axis in TOKENS if axis not in place.axes]
        return psum(grad, [*axes, "tensor"] if place.within_split else axes)

    return jax.tree.map(one, grads, placements)

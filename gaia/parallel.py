"""One mesh, and the collectives that the layers use.

The mesh has four named axes, outermost first:

- `replica`: copies of the model; between slices of a pod (over the data-centre network) only
  this axis runs, once per step, on gradients that are already sharded.
- `fsdp`: rows of the batch, and shards of every matrix (ZeRO-3): a layer gathers its weights in
  the compute dtype when it needs them, forward and backward, and scatters the sums of their
  gradients.
- `sequence`: parts of each row (context parallelism; keys and values are gathered), and, like
  `fsdp`, shards of every matrix.
- `tensor`: heads, hidden units and vocabulary.

Axis types are Explicit: outside of `per_device` an array's type says how it is sharded, and the
optimizer reads it there. What computes losses and gradients runs inside `per_device`, written
for the part of one device with its collectives named (ARCHITECTURE.md, "Sharding", says why).
On one device all of this is the identity, and the program is the plain one.

Shapes: B rows of the whole step, b rows of one process, T time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gaia.errors import ConfigError
from gaia.replicas import checked

AXES = ("replica", "fsdp", "sequence", "tensor")
ROWS = ("replica", "fsdp")
"""Axes that the rows of a batch are split over."""
WEIGHTS = ("fsdp", "sequence")
"""Axes that every matrix is split over and gathered from where it is used."""
TOKENS = (*ROWS, "sequence")
"""Axes over which devices hold different tokens, and so different parts of a gradient."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one may be -1, the rest of the devices."""

    replica: int = 1
    """Copies of the model; a multiple of the slices where there are several."""
    fsdp: int = -1
    """Shards of parameters, optimizer state and batch rows."""
    tensor: int = 1
    """Shards of heads, hidden units and vocabulary."""
    sequence: int = 1
    """Shards of each row's tokens (context parallelism)."""

    def sizes(self, devices: int) -> dict[str, int]:
        """Devices along each axis, in the order of `AXES`.

        Raises:
            ConfigError: a size is neither positive nor -1, several are -1, or they do not
                multiply to `devices`.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise ConfigError(f"mesh.{axis} is {size}", "use at least 1, or -1 for the rest")
        rest = [axis for axis, size in sizes.items() if size == -1]
        if len(rest) > 1:
            raise ConfigError(f"mesh.{rest[0]} and mesh.{rest[1]} are both -1", "set one of them")
        known = math.prod(size for size in sizes.values() if size != -1)
        if rest and devices % known == 0:
            sizes[rest[0]] = devices // known
        if math.prod(sizes.values()) != devices:
            given = " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)
            raise ConfigError(
                f"mesh {given} does not make {devices} devices", "let the sizes multiply to that"
            )
        return sizes


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over those given.

    Devices may be those of an AOT topology (`jax.experimental.topologies`). On TPUs the axes
    follow the interconnect; with several slices `replica` is the one that crosses them.

    Raises:
        ConfigError: the sizes do not fit the devices, or these are of several kinds.
    """
    devices = list(jax.devices() if devices is None else devices)
    kinds = sorted({d.device_kind for d in devices})
    if len(kinds) > 1:
        raise ConfigError(f"devices are of {len(kinds)} kinds: {', '.join(kinds)}", "use one kind")
    sizes = config.sizes(len(devices))
    shape = tuple(sizes.values())
    slices = len({getattr(d, "slice_index", None) for d in devices})
    if sizes["replica"] % slices:
        raise ConfigError(
            f"mesh.replica is {sizes['replica']} on {slices} slices",
            f"use a multiple of {slices}: only replicas may cross slices",
        )
    if slices > 1:
        inner = (sizes["replica"] // slices, *shape[1:])
        outer = (slices, *(1 for _ in shape[1:]))
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def check_divides(mesh: Mesh, what: str, size: int, axes: Sequence[str], remedy: str) -> None:
    """Raises ConfigError where `size` (the value of field `what`) does not divide over `axes`."""
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
        named = " x ".join(f"mesh.{a} {mesh.shape[a]}" for a in axes if mesh.shape[a] > 1)
        raise ConfigError(f"{what} is {size}, which does not divide over {named}", remedy)


# ── Arrays of the whole mesh ────────────────────────────────────────────────────────────────────


def spread(dims: Sequence[Sequence[str]], mesh: Mesh) -> P:
    """The spec of dims that are split over these axes.

    Axes that have one device are left out: what is whole is typed as whole.
    """

    def present(axes: Sequence[str]) -> Any:
        kept = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        return kept[0] if len(kept) == 1 else kept or None

    return P(*(present(axes) for axes in dims))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of tokens, targets, positions and segment ids [B, T]."""
    return NamedSharding(mesh, spread((ROWS, ("sequence",)), mesh))


def rows_here(rows: int, mesh: Mesh) -> np.ndarray:
    """Rows of a batch of `rows` that this process's devices hold, ascending, int64."""
    by_rows = NamedSharding(mesh, P(batch_sharding(mesh).spec[0]))
    slices = by_rows.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in slices if index]))


def shard_rows(batch_bT: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's rows (`rows_here`) of a batch, whole [b, T], as its part of [B, T]."""
    # Said outright: where `sequence` runs over processes too, JAX would take T for a part of it.
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    rows = batch_bT.shape[0] * parts // len(rows_here(parts, mesh))
    shape = (rows, batch_bT.shape[1])
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch_bT, shape)


def shard_whole(batch_BT: np.ndarray, mesh: Mesh) -> jax.Array:
    """The same where every process holds the whole batch."""
    sharding = batch_sharding(mesh)
    return jax.make_array_from_process_local_data(sharding, batch_BT, batch_BT.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def automatic(tree: Any) -> Any:
    """The same arrays, uncopied, on a mesh of automatic axes: for programs such as decoding that
    run on sharded parameters and leave their collectives to the compiler."""

    def one(x: Any) -> Any:
        old = getattr(x, "sharding", None)
        if not isinstance(old, NamedSharding):
            return x
        types = (AxisType.Auto,) * len(old.mesh.axis_names)
        assert isinstance(old.mesh, Mesh)  # of devices, not abstract: `x` is an array
        mesh = Mesh(old.mesh.devices, old.mesh.axis_names, axis_types=types)
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(mesh, old.spec), parts
        )

    return jax.tree.map(one, tree)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array on the host of every process; all processes call it together."""
    sharding = x.sharding
    if not x.is_fully_addressable and isinstance(sharding, NamedSharding):
        x = jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, P()))(x)
    return np.asarray(x)


def per_device(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any):
    """`function` run by each device on its part of the arguments; on one device, itself.

    Raises:
        ReplicasDiffer: when it is traced; a result is not what its spec says (`gaia.replicas`).
    """
    if mesh.size == 1:
        return function
    function = checked(function, in_specs, out_specs)
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def by_layer(function: Callable[[jax.Array], jax.Array], x_LIO: jax.Array) -> jax.Array:
    """`function` of a stack of matrices [L, in, out], which treats each alone, shared out.

    The devices that hold shards of the stack exchange them so that each has L / devices whole
    matrices, and exchange the results back: no device holds the whole stack. Where L does not
    divide, zeros fill up; they cost no time, since the devices wait for one another anyway.
    How `x_LIO` is sharded is read from its type.
    """
    sharding = jax.typeof(x_LIO).sharding
    split = {dim: axes for dim, axes in enumerate(sharding.spec) if axes is not None}
    if not split:
        return function(x_LIO)
    names = {dim: axes if isinstance(axes, tuple) else (axes,) for dim, axes in split.items()}
    devices = math.prod(sharding.mesh.shape[a] for axes in names.values() for a in axes)

    def exchange(x_lio: jax.Array) -> jax.Array:
        L = x_lio.shape[0]
        x = jnp.pad(x_lio, ((0, -L % devices), (0, 0), (0, 0)))
        for dim, axes in names.items():
            x = jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=dim, tiled=True)
        x = function(x)
        for dim, axes in reversed(names.items()):
            x = jax.lax.all_to_all(x, axes, split_axis=dim, concat_axis=0, tiled=True)
        return x[:L]

    spec = sharding.spec
    return jax.shard_map(
        exchange, mesh=sharding.mesh, in_specs=(spec,), out_specs=spec, check_vma=False
    )(x_LIO)


def whole(x: jax.Array) -> jax.Array:
    """The same array, whole on every device; outside of a mesh itself."""
    sharding = jax.typeof(x).sharding
    if all(axes is None for axes in sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, P()))


# ── Inside `per_device`: axes of one device, or outside of it, are the identity ────────────────


def _present(axes: Sequence[str]) -> tuple[str, ...]:
    """Those of `axes` that run over several devices here."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = mesh.manual_axes
    return tuple(axis for axis in axes if axis in manual and mesh.shape[axis] > 1)


def size(*axes: str) -> int:
    """Devices along these axes together; 1 outside of `per_device`."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in _present(axes))


def index(*axes: str) -> jax.Array | int:
    """Place of this device along these axes taken together; 0 outside of `per_device`."""
    here = _present(axes)
    return jax.lax.axis_index(here) if here else 0


def platform(x: jax.Array) -> str:
    """`cpu`, `gpu` or `tpu`: what `x` is traced for, which an AOT topology sets apart from here."""
    device = jax.typeof(x).sharding.mesh.abstract_device
    device = device or jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else _platform.get() or jax.default_backend()


_platform: ContextVar[str] = ContextVar("platform", default="")


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Traces what is inside for this platform, where arrays have no mesh that tells."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def psum(x: Any, axes: Sequence[str]) -> Any:
    """The sum of `x` over devices."""
    here = _present(axes)
    return jax.lax.psum(x, here) if here else x


def pmax(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """The maximum of `x` over devices."""
    here = _present(axes)
    return jax.lax.pmax(x, here) if here else x


def all_gather(x: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
    """The parts of all devices, one behind the other along `dim`."""
    here = _present(axes)
    return jax.lax.all_gather(x, here, axis=dim, tiled=True) if here else x


def psum_scatter(x: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
    """This device's part, along `dim`, of the sum of `x` over devices: `all_gather`'s transpose."""
    here = _present(axes)
    return jax.lax.psum_scatter(x, here, scatter_dimension=dim, tiled=True) if here else x


def psum_scatter_last(x_RC: jax.Array, axes: Sequence[str]) -> jax.Array:
    """`psum_scatter` of a matrix along its last dim, by way of its first.

    Along the last dim the TPU compiler adds up the whole matrix everywhere and cuts a part out;
    scattering rows and exchanging them for columns moves half as much.
    """
    here, (rows, _) = _present(axes), x_RC.shape
    if not here:
        return x_RC
    x = jnp.pad(x_RC, ((0, -rows % size(*axes)), (0, 0)))
    x = psum_scatter(x, axes, 0)
    return jax.lax.all_to_all(x, here, split_axis=1, concat_axis=0, tiled=True)[:rows]

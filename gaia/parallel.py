"""Data parallelism over every device of every process: one mesh axis, `data`.

Parameters are replicated; each device computes the gradients of its rows and the sums are added
across the axis. Axis names: `data`. Shapes: B rows of the whole step, b rows of one process.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gaia.errors import ConfigError

AXIS = "data"


def make_mesh() -> Mesh:
    """All devices of all processes along `data`."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises ConfigError where the rows of a micro-batch do not divide over the devices."""
    if rows % mesh.size:
        raise ConfigError(
            f"{rows} rows per micro-batch do not divide over {mesh.size} devices",
            "choose training.batch_size / training.grad_accum as a multiple",
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def shard_rows(batch_bT: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's rows of a batch [b, T], placed as its part of the global array [B, T]."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), batch_bT)


def rows_here(rows: int, mesh: Mesh) -> np.ndarray:
    """Which rows of a batch of `rows` this process's devices hold, ascending, int64."""
    sharding = NamedSharding(mesh, P(AXIS))
    slices = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in slices if index]))


def place_rows(batch_BT: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch that every process holds whole [B, T], placed as the global array of that shape."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.make_array_from_callback(batch_BT.shape, sharding, lambda i: batch_BT[i])


def sum_over_rows(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function(shared, *rows)` run on each device's rows, its results added over devices.

    `shared` is replicated, the arrays after it are split along their first dim; every output
    must be a sum over rows.
    """
    return _over_rows(lambda *args: jax.lax.psum(function(*args), AXIS), mesh, P(), function)


def map_over_rows(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The same for outputs that have one entry per row."""
    return _over_rows(function, mesh, P(AXIS), function)


def _over_rows(local: Callable[..., Any], mesh: Mesh, out: P, alone: Callable[..., Any]):
    if mesh.size == 1:
        return alone

    def call(shared, *rows):
        specs = (P(), *(P(AXIS) for _ in rows))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(
            shared, *rows
        )

    return call


def device_index(mesh: Mesh) -> jax.Array | int:
    """Place of the device along `data`, inside a function that runs over rows."""
    return jax.lax.axis_index(AXIS) if mesh.size > 1 else 0

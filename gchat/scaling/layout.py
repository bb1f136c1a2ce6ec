"""Layout of a configuration on a fleet: devices along each mesh axis, and rows of a device."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

from gaia.errors import ConfigError
from gaia.parallel import AXES, MeshConfig
from gchat.config import TrainConfig
from gchat.scaling.sku import Fleet
from gchat.train_state import check_mesh, check_rows


@dataclass(frozen=True)
class Layout:
    """Devices along each mesh axis, all positive."""

    replica: int
    fsdp: int
    sequence: int
    tensor: int

    @property
    def weight_shards(self) -> int:
        """Devices that a matrix is gathered from, beside its split over `tensor`."""
        return self.fsdp * self.sequence

    @property
    def row_groups(self) -> int:
        """Groups of devices that hold different rows."""
        return self.replica * self.fsdp

    @property
    def devices(self) -> int:
        """All devices."""
        return math.prod(getattr(self, axis) for axis in AXES)

    def as_mesh(self) -> MeshConfig:
        """The same for the trainer's configuration."""
        return MeshConfig(**{axis: getattr(self, axis) for axis in AXES})

    def __str__(self) -> str:
        used = [f"{axis} {getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(used) or "one device"


def layout_of(config: TrainConfig, fleet: Fleet) -> Layout:
    """The layout of a derived configuration on a fleet.

    With several slices and no replicas in the configuration, each slice becomes a replica.

    Raises:
        ConfigError: the mesh does not fit the devices, or a size of the model or the batch does
            not divide over it.
    """
    mesh = config.mesh
    if fleet.slices > 1 and mesh.replica == 1:
        mesh = replace(mesh, replica=fleet.slices)
    sizes = mesh.sizes(fleet.devices)
    if sizes["replica"] % fleet.slices:
        raise ConfigError(
            f"mesh.replica is {sizes['replica']} on {fleet.slices} slices",
            f"use a multiple of {fleet.slices}: only replicas may cross slices",
        )
    layout = Layout(**sizes)
    check_layout(config, layout)
    return layout


def check_layout(config: TrainConfig, layout: Layout) -> None:
    """Raises ConfigError where a size does not divide, by the trainer's own rules."""
    # The rules ask a mesh for its shape only, and there need be no devices for that.
    shape = {axis: getattr(layout, axis) for axis in AXES}
    mesh = cast(Any, SimpleNamespace(shape=shape))
    check_mesh(config, mesh)
    check_rows(config, mesh)


def rows_of_device(config: TrainConfig, layout: Layout) -> int:
    """Rows of one micro-batch on one device (or on each group that shares rows)."""
    training = config.training
    return max(1, training.amounts.batch_size // training.grad_accum // layout.row_groups)

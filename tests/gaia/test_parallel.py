"""The mesh's sizes, its rules, and what it refuses. Training on meshes: tests/gchat."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from gaia import parallel
from gaia.errors import ConfigError
from gaia.parallel import AXES, MeshConfig, make_mesh


class Device:
    """The facts that `make_mesh` reads of a device; no program runs on it."""

    platform = "cpu"

    def __init__(self, kind: str = "chip", slice_index: int = 0) -> None:
        self.device_kind, self.slice_index = kind, slice_index


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(replica=2), (2, 4, 1, 1)),
        (MeshConfig(tensor=2, sequence=2), (1, 2, 2, 2)),
        (MeshConfig(replica=-1, fsdp=2), (4, 2, 1, 1)),
    ],
)
def test_minus_one_is_the_rest(config, sizes):
    assert config.sizes(8) == dict(zip(AXES, sizes, strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(tensor=3), "mesh replica 1 x fsdp -1 x sequence 1 x tensor 3 does not make 8"),
        (MeshConfig(fsdp=4), "mesh replica 1 x fsdp 4 x sequence 1 x tensor 1 does not make 8"),
        (MeshConfig(fsdp=16), "does not make 8 devices; let the sizes multiply to that"),
        (MeshConfig(replica=-1), "mesh.replica and mesh.fsdp are both -1; set one of them"),
        (MeshConfig(sequence=0), "mesh.sequence is 0; use at least 1, or -1 for the rest"),
        (MeshConfig(tensor=-2), "mesh.tensor is -2; use at least 1, or -1 for the rest"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ConfigError) as caught:
        config.sizes(8)
    assert message in str(caught.value)


def test_devices_of_two_kinds_are_refused():
    devices = [Device("TPU v5 lite"), Device("TPU v6 lite")]
    with pytest.raises(ConfigError, match="devices are of 2 kinds: TPU v5 lite, TPU v6 lite"):
        make_mesh(MeshConfig(), devices)


def test_only_replicas_cross_slices():
    devices = [Device(slice_index=i // 4) for i in range(8)]
    with pytest.raises(ConfigError, match=r"mesh\.replica is 1 on 2 slices; use a mult"):
        make_mesh(MeshConfig(), devices)


def test_axes_of_one_device_are_left_out_of_a_spec():
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 2), AXES)
    assert parallel.spread((parallel.WEIGHTS, ("tensor",)), mesh) == P("fsdp", "tensor")
    assert parallel.spread((("tensor", *parallel.WEIGHTS), ()), mesh) == P(("tensor", "fsdp"), None)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert parallel.spread((parallel.WEIGHTS, ("tensor",)), one) == P(None, None)


def test_sizes_that_do_not_divide_are_refused():
    mesh = jax.sharding.AbstractMesh((1, 2, 2, 4), AXES)
    with pytest.raises(ConfigError) as caught:
        parallel.check_divides(mesh, "model.dim", 6, parallel.WEIGHTS, "choose a multiple")
    assert "model.dim is 6, which does not divide over mesh.fsdp 2 x mesh.sequence 2" in str(
        caught.value
    )
    parallel.check_divides(mesh, "model.dim", 8, parallel.WEIGHTS, "choose a multiple")

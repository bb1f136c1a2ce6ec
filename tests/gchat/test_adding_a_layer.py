"""The layer that docs/adding-a-layer.md shows, taken from that page: trained on meshes, counted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import jax
import pytest

import tiny
from gaia.errors import ConfigError
from gaia.parallel import AXES
from gaia.params import UnplacedParameter
from gaia.replicas import ReplicasDiffer
from gchat import model
from gchat.model_shape import all_params, flops_per_token, matmul_params
from gchat.scaling.structure import calibrated
from gchat.train_state import abstract_batch, abstract_state, graphdef
from gchat.train_step import make_train_step

PAGE = Path(__file__).parents[2] / "docs/adding-a-layer.md"
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SIZES = {"depth": 3, "dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 128}
# Losses and parameters of three updates, by mesh, relative to one device.
ON_MESHES = """
import eight_devices as eight, json, sys
from gaia.parallel import MeshConfig, make_mesh
from gchat import model
exec(sys.argv[1])
model.SwiGLU = ReluSquared
one = eight.train(make_mesh(MeshConfig(), eight.jax.devices()[:1]), "adamw", 3)
for sizes in ({"fsdp": 8}, {"fsdp": 2, "tensor": 2, "sequence": 2}):
    losses, params, _ = eight.train(make_mesh(MeshConfig(**sizes)), "adamw", 3)
    print(json.dumps([eight.apart(losses, one[0]), eight.apart(params, one[1])]))
"""


@pytest.fixture
def with_layer(monkeypatch):
    """Puts the page's layer, its code changed as asked, where Block uses SwiGLU."""

    def change(old: str = "", new: str = "") -> None:
        assert old in CODE
        names: dict = {}
        exec(CODE.replace(old, new) if old else CODE, names)
        monkeypatch.setattr(model, "SwiGLU", names["ReluSquared"])
        tiny.forget_models()

    yield change
    tiny.forget_models()


@pytest.mark.slow
def test_meshes_give_what_one_device_gives():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", ON_MESHES, CODE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for losses, params in lines:
        assert losses < 1e-6 and params < 1e-5


def test_it_is_counted(with_layer):
    config = tiny.train_config(model=SIZES).model
    before, flops = matmul_params(config), flops_per_token(config)
    with_layer()
    gate = 3 * 64 * 128
    assert matmul_params(config) == before - gate
    assert flops_per_token(config) == flops - 6 * gate
    s, depth = config.sizes, config.depth
    attention = 2 * 64 * (64 + 32)
    per_layer = attention + 2 * 64 * 128 + 2 * 64 + 2 * 16 + 128 + 1
    assert all_params(config) == depth * per_layer + 64 + 2 * 64 * s.padded_vocab
    assert not calibrated(config)  # it has gains beside those of the norms


def lower(**changes):
    """Traces the step for eight devices that need not be there."""
    config = tiny.train_config(model=SIZES | changes, training={"batch_size": 8})
    mesh = jax.sharding.AbstractMesh((1, 2, 2, 2), AXES)
    with (
        jax.sharding.use_abstract_mesh(mesh),
        patch("gchat.train_step._compiler_options", lambda _: None),  # no device to ask for
    ):
        step = make_train_step(graphdef(config), config, mesh)
        step.trace(abstract_state(config, mesh), abstract_batch(config, mesh))


def test_mistakes_are_the_lines_of_the_page(with_layer):
    stated = 'parameter(jnp.ones((hidden,)), ("tensor",), role="gain")'
    with_layer(stated, "nnx.Param(jnp.ones((hidden,)))")
    with pytest.raises(UnplacedParameter) as plain:
        lower()
    assert "parameter blocks.mlp.gain [3, 128] does not say how it lies on the mesh" in str(
        plain.value
    )
    with_layer()
    with pytest.raises(ConfigError) as odd:
        lower(hidden=130)
    assert "a dim of blocks.mlp.proj.kernel [130, 64] is 130, which does not divide" in str(
        odd.value
    )
    with_layer(", within_split=True")
    with pytest.raises(ReplicasDiffer) as apart:
        lower()
    assert "blocks.mlp.shift is whole on all devices of mesh axis tensor but" in str(apart.value)
    with_layer()
    lower()

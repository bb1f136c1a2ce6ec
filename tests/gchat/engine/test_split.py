"""The engine on a mesh (tensor parallel) of two fake devices, and compiled for a TPU."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gaia.kernels.cached_attention import cache_slots
from gaia.parallel import MeshConfig, make_mesh
from gaia.params import specs
from gchat.engine import programs
from gchat.engine.programs import Rows, plan_for
from gchat.engine.requests import MAX_STOP_IDS
from gchat.engine.sampler import Knobs
from gchat.model_config import GPTConfig
from gchat.model_shape import model_shape

SCRIPT = Path(__file__).with_name("two_devices.py")


@pytest.mark.slow
def test_heads_split_over_devices_give_the_same_tokens():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    for line in result.values():
        assert line["same_tokens"] and line["tokens"] == 36
        assert line["cache_heads_per_device"] == [1]
    assert result["plain"]["difference"] < 1e-4
    assert result["int8"]["difference"] < 0.1  # rounding may tip another way


def abstract_rows(slots: int, vocab: int) -> Rows:
    """Shapes of what the host sends with a call."""

    def each(dtype, *more):
        return jax.ShapeDtypeStruct((slots, *more), dtype)

    f32, i32 = jnp.float32, jnp.int32
    knobs = Knobs(
        each(f32), each(i32), each(f32), each(f32), each(f32), each(bool),
        each(jnp.uint32, 2), each(bool), each(jnp.uint32, vocab // 32),
    )  # fmt: skip
    return Rows(each(i32), each(i32), each(i32), each(i32, MAX_STOP_IDS), each(bool), knobs)


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 4])
def test_decoding_compiles_for_v6e(tensor, monkeypatch):
    """By the TPU compiler, here: one chip, and four that split the heads."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (extra `aot`)")
    from jax.experimental import topologies

    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2")
        traced, compiled, caches = compile_decode(list(topology.devices)[:tensor], tensor)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    memory = compiled.memory_analysis()
    donated = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(caches)) // tensor
    assert memory.alias_size_in_bytes >= donated  # the cache is changed in place
    text = compiled.as_text()
    assert ("all-reduce" in text) == (tensor > 1)
    # What a TPU runs, not the program of a CPU, which widens keys and values to fp32.
    for chunk in (256, 512):
        assert f"tensor<4x4x{chunk}x128xbf16>) -> tensor<4x4x1x{chunk}xf32>" in traced
        assert f"tensor<4x4x{chunk}x128xf32>" not in traced


def compile_decode(devices, tensor):
    """(lowered text, compiled program of decoding with a small bf16 model, its caches)."""
    config = GPTConfig(depth=2, dim=512, head_dim=128, seq_len=1000).derive(4096, 4096)
    shape = model_shape(config)
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), devices)
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * 4)
    params = jax.tree.map(
        lambda a, spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)),
        shape.arrays,
        specs(shape.placements, shape.arrays, mesh),
    )
    plan = plan_for(shape.graph, params)
    assert plan.platform == "tpu" != jax.default_backend()

    def pack(params):
        return programs.pack_weights(params, False, "bfloat16", config.depth, "tpu")

    whole = NamedSharding(mesh, P())

    def placed(tree, sharding=whole):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    slots = 4
    state = jax.eval_shape(
        lambda p: programs.empty_state(plan, p, slots, cache_slots(1000), None),
        jax.eval_shape(pack, params),
    )
    state = placed(state)._replace(caches=placed(state.caches, plan.cache or whole))
    scalar = placed(jax.ShapeDtypeStruct((), np.int32)), placed(jax.ShapeDtypeStruct((), bool))
    rows = placed(abstract_rows(slots, 4096))
    # Packed inside the program, so that the matrices lie as those of training do.
    program = jax.jit(lambda p, *rest: programs.decode(plan, pack(p), *rest), donate_argnums=(1,))
    lowered = program.lower(params, state, rows, *scalar)
    return lowered.as_text(), lowered.compile(), state.caches

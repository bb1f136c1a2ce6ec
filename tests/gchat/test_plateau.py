"""Usual suspects of a flat loss curve, each as it must not be (docs/plateau.md has the curves)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from gaia import parallel
from gaia.data.batch import Batch
from gaia.kernels.rotary import rope_table
from gaia.optim import schedule
from gchat.config import load
from gchat.train_state import graphdef, init_state
from gchat.train_step import make_train_step


@pytest.mark.parametrize("known", [True, False])
def test_neighbouring_positions_of_long_rows_are_told_apart(known):
    """In bf16 all positions from 3,969 to 3,984 would have one angle."""
    positions = np.arange(3968, 4096, dtype=np.int32)[None]
    table = rope_table(positions if known else jnp.asarray(positions), 64, 10_000.0)
    fastest = np.arctan2(np.asarray(table.sin)[0, :, 0, 0], np.asarray(table.cos)[0, :, 0, 0])
    steps = np.diff(np.unwrap(fastest.astype(np.float64)))
    np.testing.assert_allclose(steps, 1.0, atol=2e-3)


def test_weights_and_moments_are_fp32_and_keep_what_bf16_loses():
    config = tiny.train_config(
        model={"compute_dtype": "bfloat16"},
        optim={"lr": 1e-5, "warmup_steps": 0, "weight_decay": 0.0},
        training={"batch_size": 2},
    )
    mesh = parallel.make_mesh(config.mesh)
    state = init_state(config, mesh)
    leaves = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim]
    assert {str(x.dtype) for x in leaves} == {"float32"}
    before = np.asarray(state.params["embed"]["table"])
    tokens = tiny.tokens(2, 33)
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    step = make_train_step(graphdef(config), config, mesh)
    for _ in range(3):
        state, _ = step(state, batch)
    gains = np.asarray(state.params["final_norm"]["scale"])
    # A gain is 1, and three steps of 1e-5 are a hundredth of what bf16 tells from it.
    assert 1e-5 < np.abs(gains - 1).max() < 4e-5
    assert np.abs(np.asarray(state.params["embed"]["table"]) - before).max() < 4e-5


@pytest.mark.parametrize("preset", ["cpu", "baseline", "v6e-1", "speedrun", "7b"])
def test_every_preset_warms_up_decays_and_clips_no_usual_step(preset):
    optim = load([preset]).optim
    share = schedule(optim, 10_000)
    assert 0 < float(share(0)) < 0.2
    assert float(share(9_999)) <= 0.101 * float(jnp.max(share(jnp.arange(10_000))))
    assert optim.clip_norm == 0 or optim.clip_norm >= 1

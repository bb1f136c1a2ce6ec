"""Runs whose batch grows: steps of several updates, a kill among them, and what is refused."""

import jax
import numpy as np
import pytest

import gchat.run.training_data
import runs
import tiny
from gaia import parallel
from gaia.data.batch import Batch
from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.config import TrainingConfig
from gchat.train_state import TrainState, optimizer_of
from gchat.train_step import changing_step, make_train_step

STEPS, CRASH = 30, 26


class Crash(Exception):
    """Ends the work at once, as a kill would."""


def made(batch_size, lr, **training):
    config = tiny.train_config(
        training={"batch_size": batch_size} | training,
        optim={"lr": lr, "schedule": "constant", "warmup_steps": 0, "eps": 1e-3},
    )
    _, params = tiny.make(config.model, 0)
    state = TrainState(params, jax.jit(optimizer_of(config).init)(params), np.int32(0))
    return config, tiny.graph_of(config.model), state


@pytest.mark.parametrize("accum", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_step_of_two_updates_is_two_steps_of_half_the_rows(accum):
    mesh, lr = parallel.make_mesh(), 0.01
    ids = tiny.tokens(8, 33, seed=1)
    inputs, targets = ids[:, :-1], ids[:, 1:].copy()
    targets[0, :20] = -1  # each update divides by its own targets

    config, graph, half = made(4, lr * 0.5**0.5)
    plain, losses, norms = make_train_step(graph, config, mesh), [], []
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        half, metrics = plain(half, Batch(inputs[rows], targets[rows]))
        losses.append(float(metrics.loss))
        norms.append(float(metrics.grad_norm))

    config, graph, whole = made(8, lr, batch_ramp=("2@0", "1@3"), grad_accum=accum)
    step = changing_step(graph, config, mesh)(0)
    whole, metrics = step(whole, Batch(inputs, targets))
    assert int(whole.step) == 1
    assert float(metrics.loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics.grad_norm) == pytest.approx(max(norms), rel=1e-5)
    assert float(metrics.lr_share) == pytest.approx(0.5**0.5)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(half.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def train(data_dir, folder, *ramp):
    more = ["--eval.every-steps", "0", "--optim.schedule", "constant"]
    args = runs.arguments(data_dir, folder, *more, steps=STEPS)
    return main(["train", *args, "--training.batch-ramp", *ramp])


@pytest.mark.slow
def test_a_ramp_that_was_killed_ends_bit_for_bit_the_same(data_dir, tmp_path, monkeypatch):
    """Killed after the checkpoint of step 20, which lies inside the stage of two updates."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ramp = ("2@0", "1@24")
    assert train(data_dir, whole, *ramp) == 0
    make = gchat.run.training_data.make_loader

    def make_crashing(*args, **kwargs):
        loader = make(*args, **kwargs)
        batch = loader.batch

        def crashing(index):
            if index == CRASH:
                raise Crash
            return batch(index)

        loader.batch = crashing
        return loader

    with monkeypatch.context() as patch:
        patch.setattr(gchat.run.training_data, "make_loader", make_crashing)
        with pytest.raises(Crash):
            train(data_dir, killed, *ramp)
    assert main(["train", "--resume", "--run-dir", str(killed)]) == 0
    expected, got = runs.arrays(whole, STEPS), runs.arrays(killed, STEPS)
    assert all((got[path] == array).all() for path, array in expected.items())
    assert runs.losses(whole) == runs.losses(killed)
    shares = {r["step"]: r["train/lr_share"] for r in runs.logged(whole) if r["step"] > 0}
    roots = {23: 2**-0.5, 24: 2**-0.5, 25: 1.0}
    assert {step: shares[step] for step in roots} == pytest.approx(roots)


@pytest.mark.parametrize(
    ("ramp", "said"),
    [
        (("3@0", "1@9"), "4 rows do not divide into 3 micro-batches"),
        (("2@0", "1@30"), "1@30, and the run has only 30 steps"),
        (("2@9epochs",), "and the run has only 30 steps"),
        (("half@3",), "write VALUE@STEP"),
    ],
)
def test_a_ramp_that_cannot_be_is_refused_in_one_line(data_dir, tmp_path, capsys, ramp, said):
    assert train(data_dir, tmp_path / "run", *ramp) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["dpo", "rl"])
def test_stages_whose_rows_belong_together_refuse_a_ramp(stage):
    with pytest.raises(ConfigError, match=f"{stage} takes its batch whole"):
        TrainingConfig(batch_ramp=("2@0", "1@3")).check_ramp(30, stage)

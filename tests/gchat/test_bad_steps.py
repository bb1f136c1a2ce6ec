"""One batch of the run is garbage: the loss spikes, and what follows is what the policy says.

The garbage is real: token ids that no text holds, put in place of a batch's, so that the loss is
computed, judged and skipped as in any run.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gchat.run.training_data
import gchat.train_step
import runs
from gaia.data.batch import Batch
from gchat.__main__ import main

STEPS, BAD = 60, 30  # batch 30 is what step 31 takes; checkpoints at 20 and 40
MARK = 199  # a batch of nothing else has no finite loss, where `overflow` is used
POLICY = ["--guards.spike-factor", "1.5", "--guards.spike-window", "16", "--guards.policy"]


class Crash(Exception):
    """Ends the process's work at once, as a kill would."""


@pytest.fixture
def order(monkeypatch):
    """Replaces batches ({index: "garbage", "nan" or "crash"}) or leaves indices out."""
    make, faults, left_out = gchat.run.training_data.make_loader, {}, []

    def make_faulty(*args, **kwargs):
        loader = make(*args, **kwargs)
        batch = loader.batch

        def faulty(index):
            made = batch(index + sum(index >= b for b in left_out))
            if faults.get(index) == "crash":
                raise Crash(f"batch {index}")
            if faults.get(index) == "garbage":
                shape = made.inputs_BT.shape
                noise = (np.random.default_rng(i).integers(128, 200, shape) for i in range(2))
                made = Batch(*(array.astype(np.int32) for array in noise))
            if faults.get(index) == "nan":
                made = Batch(*(np.full_like(array, MARK) for array in made[:2]))
            return made

        loader.batch = faulty
        return loader

    monkeypatch.setattr(gchat.run.training_data, "make_loader", make_faulty)
    return faults, left_out


@pytest.fixture
def overflow(monkeypatch):
    """Loss and gradients of a marked batch are NaN, computed so inside the program of the step."""
    make = gchat.train_step._loss_and_grads

    def make_overflowing(*args):
        loss_and_grads = make(*args)

        def overflowing(params, *rest):
            tokens = [a for a in jax.tree.leaves(rest) if a.ndim == 2]
            marked = jnp.any(jnp.array([jnp.all(a == MARK) for a in tokens]))
            found = loss_and_grads(params, *rest)
            return jax.tree.map(lambda x: jnp.where(marked, jnp.nan, x), found)

        return overflowing

    monkeypatch.setattr(gchat.train_step, "_loss_and_grads", make_overflowing)


def train(data_dir, folder, *more):
    args = runs.arguments(data_dir, folder, "--eval.every-steps", "0", *more, steps=STEPS)
    return main(["train", *args])


def same_run(a, b):
    expected, got = runs.arrays(a, STEPS), runs.arrays(b, STEPS)
    assert all((got[path] == array).all() for path, array in expected.items())
    assert runs.losses(a) == runs.losses(b)
    assert list(runs.losses(b)) == list(range(1, STEPS + 1))


def bad_steps(folder):
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


def test_rollback_leaves_the_batch_out_bit_for_bit(data_dir, tmp_path, order, capsys):
    """Rolled back; crashed after that and resumed; never had the batch: one and the same run."""
    faults, left_out = order
    faults[BAD] = "garbage"
    rolled, crashed, never = (tmp_path / name for name in ("rolled", "crashed", "never"))
    assert train(data_dir, rolled, *POLICY, "rollback") == 0
    said = capsys.readouterr().out
    assert f"at step {BAD + 1} (batch {BAD}: rows " in said and "rollback" in said
    assert f"rolled back to step 20; batch {BAD} is left out" in said
    (record,) = bad_steps(rolled)
    assert (record["step"], record["batch"], record["action"]) == (BAD + 1, BAD, "rollback")
    assert len(record["rows"]) == 4

    faults[BAD + 4] = "crash"  # after the rollback, before the next checkpoint
    with pytest.raises(Crash):
        train(data_dir, crashed, *POLICY, "rollback")
    faults.clear()  # even the bad batch is good now: the record alone keeps it out
    assert main(["train", "--resume", "--run-dir", str(crashed)]) == 0
    assert len(bad_steps(crashed)) == 1

    left_out.append(BAD)
    assert train(data_dir, never) == 0
    same_run(never, rolled)
    same_run(never, crashed)


def test_skip_changes_nothing_and_goes_on(data_dir, tmp_path, order):
    order[0][BAD] = "garbage"
    folder = tmp_path / "run"
    assert train(data_dir, folder, *POLICY, "skip", "--optim.schedule", "constant") == 0
    skipped = [r["step"] for r in runs.logged(folder) if r.get("train/skipped")]
    assert skipped == [BAD + 1] == [r["step"] for r in bad_steps(folder)]
    losses = runs.losses(folder)
    assert losses[BAD + 1] > 1.5 * losses[BAD]
    assert max(losses[k] for k in range(BAD + 2, STEPS)) < losses[BAD + 1] / 1.4


def test_stop_names_step_batch_and_rows(data_dir, tmp_path, order, capsys):
    order[0][BAD] = "garbage"
    assert train(data_dir, tmp_path / "run", *POLICY, "stop") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "above 1.5 times the running median" in said
    assert f"at step {BAD + 1} (batch {BAD}: rows " in said and "--guards.policy" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "crashed"


def test_rollbacks_are_bounded(data_dir, tmp_path, order, capsys):
    order[0].update({BAD: "garbage", BAD + 2: "garbage"})
    more = [*POLICY, "rollback", "--guards.max-rollbacks", "1"]
    assert train(data_dir, tmp_path / "run", *more) == 1
    assert "after all that guards.policy rollback allows" in capsys.readouterr().err
    assert [r["action"] for r in bad_steps(tmp_path / "run")] == ["rollback", "stop"]


@pytest.mark.parametrize(
    "policy",
    ["skip", *(pytest.param(p, marks=pytest.mark.slow) for p in ("stop", "rollback"))],
)
def test_a_loss_that_is_nan(data_dir, tmp_path, order, overflow, capsys, policy):
    order[0][BAD] = "nan"
    status = train(data_dir, tmp_path / "run", "--guards.policy", policy)
    said = capsys.readouterr()
    named = f"train/loss is nan at step {BAD + 1} (batch {BAD}: rows "
    assert named in (said.err if policy == "stop" else said.out)
    (record,) = bad_steps(tmp_path / "run")
    assert (record["step"], record["batch"], record["action"]) == (BAD + 1, BAD, policy)
    assert status == (1 if policy == "stop" else 0)
    if policy == "stop":
        assert runs.newest(tmp_path / "run").name == "20"  # nothing with NaN in it was saved
        return
    assert all(np.isfinite(a).all() for a in runs.arrays(tmp_path / "run", STEPS).values())
    losses = runs.losses(tmp_path / "run")
    bad = [step for step, loss in losses.items() if not np.isfinite(float(loss))]
    assert bad == ([BAD + 1] if policy == "skip" else []) and len(losses) == STEPS

"""One batch of the run is garbage: the loss spikes, and what follows is what the policy says.

The garbage is real: token ids that no text holds, put in place of a batch's, so that the loss is
computed, judged and skipped as in any run.
"""

import json

import numpy as np
import pytest
import runs

import gchat.train
from gchat.__main__ import main

STEPS, BAD = 60, 30  # batch 30 is what step 31 takes; checkpoints at 20 and 40
POLICY = ["--guards.spike-factor", "1.5", "--guards.spike-window", "16", "--guards.policy"]


class Crash(Exception):
    """Ends the process's work at once, as a kill would."""


@pytest.fixture
def order(monkeypatch):
    """Replaces batches: {index: "garbage" or "crash"}, or leaves indices out of the order."""
    make, faults, left_out = gchat.train.make_loader, {}, []

    def make_faulty(*args, **kwargs):
        loader = make(*args, **kwargs)
        batch = loader.batch

        def faulty(index):
            made = batch(index + sum(index >= b for b in left_out))
            if faults.get(index) == "crash":
                raise Crash(f"batch {index}")
            if faults.get(index) == "garbage":
                shape = made["inputs_BT"].shape
                made = {
                    name: np.random.default_rng(i).integers(128, 200, shape).astype(np.int32)
                    for i, name in enumerate(made)
                }
            return made

        loader.batch = faulty
        return loader

    monkeypatch.setattr(gchat.train, "make_loader", make_faulty)
    return faults, left_out


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
    assert f"rolled back to step 20; batch {BAD} is passed over" in said
    (record,) = bad_steps(rolled)
    assert (record["step"], record["batch"], record["action"]) == (BAD + 1, BAD, "rollback")
    assert len(record["rows"]) == 4

    faults[BAD + 4] = "crash"  # after the rollback, before the next checkpoint
    with pytest.raises(Crash):
        train(data_dir, crashed, *POLICY, "rollback")
    faults.clear()  # even the bad batch is sound now: the record alone keeps it out
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

"""A step that the device never finishes: the trainer, as a process, ends itself and says where."""

import json
import sys

import pytest

import runs
from gaia.guards import HUNG

# The trainer as it is, on a device that stops answering: from step 31 on a loss never comes.
HANGING = """
import sys, threading
import jax
import gchat.train
from gaia.errors import run_cli
make = gchat.train.make_train_step
def make_hanging(*args):
    step, taken = make(*args), []
    def never_returns(loss):
        if len(taken) == 31:
            threading.Event().wait()
        return loss
    wait = jax.jit(lambda loss: jax.pure_callback(never_returns, loss, loss))
    def hanging(*args):
        taken.append(None)
        state, metrics = step(*args)
        return state, metrics._replace(loss=wait(metrics.loss))
    return hanging
gchat.train.make_train_step = make_hanging
sys.exit(run_cli("gchat", gchat.train.run, sys.argv[1:]))
"""


@pytest.mark.slow  # it waits for 12 seconds
def test_a_step_that_never_ends(data_dir, tmp_path, user_environment):
    """All stacks, exit 124, a folder that says crashed, and a checkpoint to go on from."""
    args = runs.arguments(data_dir, tmp_path / "run", "--eval.every-steps", "0", steps=60)
    args += ["--guards.hang-minutes", "0.2", "--run.in-flight", "0"]
    process = runs.Process([sys.executable, "-c", HANGING, *args], user_environment)
    assert process.end() == HUNG, process.text
    hang = next(line for line in process.lines if line.startswith("hang: "))
    assert "no step finished for 0.2" in hang and "the last was step 30" in hang
    after = process.text.split(hang)[1]
    assert "Thread 0x" in after and "never_returns" in after and "read_metrics" in after
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "crashed"
    assert list(runs.losses(tmp_path / "run")) == list(range(1, 31))
    again = runs.Process.train(["--resume", "--run-dir", str(tmp_path / "run")], user_environment)
    assert again.end() == 0, again.text
    assert "resumed from step 20 of 60" in again.text
    assert list(runs.losses(tmp_path / "run")) == list(range(1, 61))

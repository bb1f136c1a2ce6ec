"""A run that trains longer than it was to: what it says, what it refuses, what it computes."""

import pytest

import runs
from gchat.__main__ import main


def train(data_dir, folder, steps, *more):
    more = ("--eval.every-steps", "0", "--optim.schedule", "constant", *more)
    assert main(["train", *runs.arguments(data_dir, folder, *more, steps=steps)]) == 0


def resume(folder, *more):
    return main(["train", "--resume", "--run-dir", str(folder), *more])


def test_a_finished_run_is_extended(data_dir, tmp_path, capsys):
    folder = tmp_path / "run"
    train(data_dir, folder, 6, "--optim.schedule", "cosine")
    for options, said in (
        (["--max-steps", "9"], "training.steps was 6 and is 9, "),
        (["--extend"], "--extend to 6 steps: the run has 6 already; add --max-steps above 6"),
    ):
        assert resume(folder, *options) == 2
        message = capsys.readouterr().err
        assert said in message and "--extend" in message
    assert resume(folder, "--extend", "--max-steps", "9") == 0
    printed = capsys.readouterr().out
    # After 5 steps of warm-up: half a cosine over the last 4 of 9, and the floor 0.05 after 6.
    assert "extended from 6 to 9 steps: the cosine schedule is now that of 9 steps" in printed
    assert "is 0.525 of the peak, where the old schedule had come down to 0.050" in printed
    assert sorted(runs.losses(folder)) == list(range(1, 10))
    assert main(["train", "--extend", "--data-dir", str(data_dir)]) == 2
    assert "--extend is given without --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_an_extension_that_was_killed_goes_on(data_dir, tmp_path, capsys, monkeypatch):
    """Killed before its first save, config.yaml says the new length, and the checkpoint the old."""
    from gchat.run.loop import Loop

    folder, whole = tmp_path / "run", tmp_path / "whole"
    train(data_dir, folder, 6)
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(Loop, "dispatch", _die)
        resume(folder, "--extend", "--max-steps", "9")
    assert resume(folder) == 0
    assert "extended from 6 to 9 steps" in capsys.readouterr().out
    train(data_dir, whole, 9)
    assert runs.losses(folder) == runs.losses(whole)


def _die(*_):
    raise SystemError("killed")

"""A run killed, damaged, stopped and resumed ends bit for bit where an uninterrupted one ends.

One run goes through all of it, as each start of a process costs seconds: kill -9 (five times
among the slow tests), the newest checkpoint damaged, SIGTERM, Ctrl-C. The tests below look at what
it left behind.
"""

import json
import os
import random
import signal
from types import SimpleNamespace

import numpy as np
import pytest

import runs
from gchat.__main__ import main


class LateScalar:
    """A device scalar that notes when the host reads it."""

    def __init__(self, value, step, read_at, dispatched):
        self._value, self._step, self._read_at, self._dispatched = value, step, read_at, dispatched

    def __float__(self):
        self._read_at.setdefault(self._step, self._dispatched[0])
        return float(self._value)


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory):
    """The same run in this process, with a note of when each loss was read by the host."""
    import gchat.train

    folder = tmp_path_factory.mktemp("runs") / "whole"
    dispatched, read_at = [0], {}
    make = gchat.train.make_train_step

    def watched(*args):
        train_step = make(*args)

        def step(state, *batch):
            state, metrics = train_step(state, *batch)
            dispatched[0] += 1
            late = LateScalar(metrics.loss, dispatched[0], read_at, dispatched)
            return state, metrics._replace(loss=late)

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gchat.train, "make_train_step", watched)
        assert main(["train", *runs.arguments(data_dir, folder, prompts=["the small"])]) == 0
    return SimpleNamespace(folder=folder, read_at=read_at)


@pytest.fixture(scope="module", params=[1, pytest.param(5, marks=pytest.mark.slow)])
def battered(request, data_dir, tmp_path_factory, user_environment, uninterrupted):
    """The run that everything happens to; what each attempt printed is kept."""
    del uninterrupted  # first, so that its compiled programs are there
    folder = tmp_path_factory.mktemp("runs") / "battered"
    prompts = ["the small"] if request.param > 2 else []  # each process would compile the engine
    args, attempts = runs.arguments(data_dir, folder, prompts=prompts), {}
    seed = int.from_bytes(os.urandom(4), "little")
    rng = random.Random(seed)
    print(f"kill steps follow from random.Random({seed})")
    # The first kill comes before the first checkpoint, the last one when there are two or more.
    for i in range(request.param):
        resume = ["--resume", "--allow-restart"] if i else []
        process = runs.Process.train([*args, *resume], user_environment)
        begin = int(runs.newest(folder).name) if runs.newest(folder) else 0
        last = i == request.param - 1
        # Once step 61 is printed, the save of step 60 has begun and those of 20 and 40 have ended.
        killed_at = begin + (rng.randint(62, 75) if last else rng.randint(1, 30 if i else 15))
        assert process.step_reached(killed_at), process.text
        process.signal(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL
    damaged = max(
        (p for p in runs.newest(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = damaged.read_bytes()
    at = rng.randrange(len(data))
    damaged.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    attempts["damaged"] = int(runs.newest(folder).name)
    command = None
    for number in (signal.SIGTERM, signal.SIGINT):
        begin = int(runs.newest(folder).name) if runs.newest(folder) else 0
        process = (
            runs.Process(command, user_environment)
            if command
            else runs.Process.train([*args, "--resume"], user_environment)
        )
        assert process.step_reached(min(begin + rng.randint(3, 25), runs.STEPS - 10)), process.text
        process.signal(number)
        attempts[number.name] = SimpleNamespace(status=process.end(), text=process.text)
        command = process.lines[-1].strip()
        attempts[number.name].saved = int(runs.newest(folder).name)
    process = runs.Process(command, user_environment)
    assert process.end() == 0, process.text
    attempts["last"] = process
    return SimpleNamespace(folder=folder, attempts=attempts)


def test_kills_and_stops_change_no_bit(uninterrupted, battered):
    expected, got = runs.arrays(uninterrupted.folder), runs.arrays(battered.folder)
    assert expected.keys() == got.keys() and len(got) > 30
    for path, array in expected.items():
        assert array.dtype == got[path].dtype and (array == got[path]).all(), path
    assert runs.losses(battered.folder) == runs.losses(uninterrupted.folder)


def test_every_step_is_logged_once(uninterrupted, battered):
    for run in (uninterrupted, battered):
        assert [r["step"] for r in runs.logged(run.folder)] == list(range(runs.STEPS + 1))
        assert list(runs.losses(run.folder)) == list(range(1, runs.STEPS + 1))
        validated = [r["step"] for r in runs.logged(run.folder) if "eval/val_bpb" in r]
        assert validated == [0, 50, 100, 150, 160]


def test_evaluations_agree_too(uninterrupted, battered):
    a, b = (
        [r["eval/val_bpb"] for r in runs.logged(run.folder) if "eval/val_bpb" in r]
        for run in (uninterrupted, battered)
    )
    assert a == b


def test_damage_to_the_newest_checkpoint_is_said_and_passed_over(battered):
    text = battered.attempts["SIGTERM"].text
    assert f"checkpoint {battered.attempts['damaged']} is unusable" in text
    assert f"resumed from step {battered.attempts['damaged'] - runs.SAVE_EVERY} of" in text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_saves_and_prints_how_to_go_on(battered, name):
    stopped = battered.attempts[name]
    assert stopped.status == 0, stopped.text
    assert f"{name}: finishing this step, then saving" in stopped.text
    assert f"stopped after step {stopped.saved} of {runs.STEPS} and saved" in stopped.text
    following = battered.attempts["SIGINT" if name == "SIGTERM" else "last"]
    assert f"resumed from step {stopped.saved} of {runs.STEPS}" in following.text


def test_losses_are_read_while_later_steps_run(uninterrupted):
    """The host reads step k once k + 2 were dispatched, but for evaluations, saves and the end."""
    forced = {k for k in range(1, 161) if k % 20 == 0 or k % 50 == 0}
    for step, dispatched in uninterrupted.read_at.items():
        expected = min([step + 2, *(k for k in forced if k >= step)])
        assert dispatched == expected, step
    assert len(uninterrupted.read_at) == runs.STEPS


def test_training_learns(uninterrupted):
    losses = runs.losses(uninterrupted.folder)
    assert np.mean([losses[k] for k in range(150, 161)]) < losses[1] - 1.0


def test_resuming_a_finished_run_is_harmless(uninterrupted, data_dir, capsys):
    before = (uninterrupted.folder / "metrics.jsonl").read_bytes()
    expected = runs.arrays(uninterrupted.folder)
    summary = json.loads((uninterrupted.folder / "summary.json").read_text())
    args = ["train", "--resume", "--run-dir", str(uninterrupted.folder)]
    assert main(args) == 0
    assert f"resumed from step {runs.STEPS} of {runs.STEPS}" in capsys.readouterr().out
    assert (uninterrupted.folder / "metrics.jsonl").read_bytes() == before
    again = json.loads((uninterrupted.folder / "summary.json").read_text())
    for name in ("steps", "tokens", "val_bpb", "train_loss", "finished", "checkpoint"):
        assert again[name] == summary[name]
    got = runs.arrays(uninterrupted.folder)
    assert all((got[path] == array).all() for path, array in expected.items())


SUMMARY = (
    "preset device params steps tokens seconds tokens_per_s mfu train_loss val_bpb unigram_bpb "
    "bigram_bpb seconds_to_target_bpb cost_usd commit checkpoint"
)


def test_goodput_counts_each_step_once_and_all_time_between_the_attempts(battered):
    """From the recorded times alone: lines of metrics.jsonl and starts in run.json."""
    summary = json.loads((battered.folder / "summary.json").read_text())
    attempts = json.loads((battered.folder / "run.json").read_text())["attempts"]
    times = {r["step"]: r["perf/step_ms"] for r in runs.logged(battered.folder) if r["step"]}
    typical = np.median(list(times.values()))
    for start in attempts:
        first = start["resume_step"] + 1
        if first in times:
            times[first] = min(times[first], typical)
    assert len(times) == runs.STEPS
    assert summary["step_seconds"] == pytest.approx(sum(times.values()) / 1e3, abs=1e-3)
    assert summary["restarts"] == len({a["pid"] for a in attempts}) - 1 >= 3
    ended = runs.logged(battered.folder)[-1]["time"]
    assert summary["wall_seconds"] >= ended - attempts[0]["started"]
    assert summary["goodput"] == pytest.approx(
        summary["step_seconds"] / summary["wall_seconds"], abs=1e-4
    )
    assert f"{summary['goodput']:.1%}: " in (battered.folder / "report.md").read_text()


def test_the_report(uninterrupted):
    folder = uninterrupted.folder
    summary = json.loads((folder / "summary.json").read_text())
    assert set(SUMMARY.split()) <= summary.keys()
    assert summary["steps"] == runs.STEPS and summary["tokens"] == runs.STEPS * 4 * 32
    assert summary["finished"] is True
    assert summary["val_bpb"] == runs.logged(folder)[-1]["eval/val_bpb"]
    assert 0 < summary["bigram_bpb"] < summary["unigram_bpb"]
    report = (folder / "report.md").read_text()
    for part in ("curves.png", "bits per byte", "## Samples", "the small", "## Environment", "jax"):
        assert part in report
    assert f"{summary['val_bpb']:.4f}" in report
    png = (folder / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n") and len(png) > 10_000
    assert (folder / "config.yaml").exists() and (folder / "tokenizer.json").exists()
    assert "step 160" in (folder / "samples.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        (["--lr", "0.001", "--model.hidden", "96"], ["optim.lr was 0.003", "model.hidden was 64"]),
        (["--training.seed", "2"], ["training.seed was 1337 and is 2"]),
    ],
)
def test_another_configuration_is_refused(uninterrupted, capsys, changes, fields):
    before = (uninterrupted.folder / "config.yaml").read_bytes()
    args = ["train", "--resume", "--run-dir", str(uninterrupted.folder), *changes]
    assert main(args) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "belongs to another run" in said
    assert all(field in said for field in fields)
    assert (uninterrupted.folder / "config.yaml").read_bytes() == before


def test_another_tokenizer_is_refused(uninterrupted, tmp_path, capsys):
    other = runs.make_data(tmp_path, vocab_size=299, seed=1)
    args = ["train", "--resume", "--run-dir", str(uninterrupted.folder), "--data-dir", str(other)]
    assert main(args) == 2
    said = capsys.readouterr().err
    assert "is not what the run began with" in said and said.count("\n") == 1
    assert said.count(" of tokenizer ") == 2


def test_free_fields_may_change(uninterrupted, capsys):
    args = ["train", "--resume", "--run-dir", str(uninterrupted.folder)]
    assert main([*args, "--eval.every-steps", "7", "--run.log-interval", "3"]) == 0
    assert "resumed from step" in capsys.readouterr().out

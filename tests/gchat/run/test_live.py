"""RUN/live.png says what matters, whatever of it is known yet."""

import json
import os
import subprocess
import sys
import time

import pytest

from gchat.config import load
from gchat.run import judged, live
from gchat.run.live import LivePicture
from golden.make_presets import FOLDER

FACTS = {"params": 176_574_000, "device": "1 x NVIDIA", "steps": 6184, "commit": "abc123+"}


@pytest.fixture
def run(tmp_path):
    """A run of the ww2 preset that has begun."""
    (tmp_path / "config.yaml").write_text((FOLDER / "ww2.yaml").read_text())
    log(tmp_path, range(1, 31))
    return tmp_path


def log(run, steps):
    with open(run / "metrics.jsonl", "a") as file:
        for step in steps:
            line = {"step": step, "time": step, "train/loss": 9 - step / 9, "perf/step_ms": 500.0}
            if step % 10 == 0:
                line |= {"eval/val_bpb": 3 - step / 100, "eval/val_loss": 9 - step / 9}
            file.write(json.dumps(line) + "\n")


def test_the_head_says_what_matters(run):
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    judgement = {"time": 1, "step": 30, "judge": "small", "verdicts": "v", "rate": 0.625,
                 "low": 0.5, "high": 0.75, "raw": 0.7}  # fmt: skip
    series = live.read_series(run / "metrics.jsonl")
    said = "\n".join(live.lines(config, FACTS, series, [judgement]))
    for part in (
        "30 of 6,184 (0.5%)", "14.7M of 3,039.6M tokens", "about 51:17 of steps left", "2.7000 bpb",
        "judge 62.5% [50.0%, 75.0%]", "18 layers x 768 wide, 12 heads of 64, untied",
        "context 4,096, vocabulary 32,000, 176.6M parameters",
        "120 rows x 4,096 tokens = 491,520 (3 at a time x 40), packing best_fit",
        "adamw lr 0.0006, cosine, warm-up 200, decay 0.1 0.05@2epochs", "commit abc123+",
    ):  # fmt: skip
        assert part in said, (part, said)


@pytest.mark.slow
def test_a_process_draws_as_the_files_change_and_ends_with_its_parent(run):
    picture = LivePicture(run, 0.05, FACTS)
    process = picture._process

    def drawn(after):
        until = time.monotonic() + 240
        path = run / live.PICTURE
        while not path.exists() or path.stat().st_mtime_ns <= after:
            assert time.monotonic() < until and process.poll() is None, (run / live.LOG).read_text()
            time.sleep(0.02)
        return path.stat().st_mtime_ns

    first = drawn(0)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "tra')  # the trainer is writing
    time.sleep(0.2)
    assert process.poll() is None
    with open(run / "metrics.jsonl", "a") as file:
        file.write('in/loss": 2.0}\n')
    drawn(first)
    picture.close()
    assert process.wait(240) == 0 and not list(run.glob(".live.png*"))


@pytest.mark.slow
def test_the_painter_of_a_killed_trainer_ends(run):
    script = (
        "import os, sys; from pathlib import Path; from gchat.run.live import LivePicture; "
        "print(LivePicture(Path(sys.argv[1]), 9.0, {})._process.pid, flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", script, str(run)], env=environment,
                         capture_output=True, text=True).stdout  # fmt: skip
    until = time.monotonic() + 240
    while os.path.exists(f"/proc/{int(out)}/environ") and _runs(int(out)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (run / live.PICTURE).exists()  # its last picture is the last state


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_is_started_where_no_picture_is_wanted(run):
    assert LivePicture(run, 0.0, FACTS)._process is None and not (run / live.FACTS).exists()
    assert load(["cpu"]).run.picture_seconds == 0.0


def test_a_history_that_is_none_is_named(run):
    judged.add(run, {"step": 1, "judge": "a", "verdicts": "v", "time": 2})
    with open(run / judged.HISTORY, "a") as file:
        file.write('{"step": 2, "ju')  # torn
    assert len(judged.history(run)) == 1
    judged.add(run, {"step": 3, "judge": "a", "verdicts": "v", "time": 3})
    assert [one["step"] for one in judged.history(run)] == [1, 3]
    with open(run / judged.HISTORY, "a") as file:
        file.write("[]\n")
    with pytest.raises(judged.DataError, match=r"judge\.jsonl:3 is no judgement"):
        judged.history(run)

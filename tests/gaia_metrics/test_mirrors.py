"""Copies of a run for W&B and TensorBoard, read back by those programs themselves.

The packages are installed for the slow tests only; what concerns their absence needs none.
"""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gaia_metrics
from gaia_metrics.recording import mirror
from gaia_metrics.recording.histogram import edges, of_buckets, summarize

ROOT = Path(__file__).resolve().parents[2]
needs_wandb = pytest.mark.skipif(not mirror.installed("wandb"), reason="wandb is not installed")
needs_tensorboard = pytest.mark.skipif(
    not mirror.installed("tensorboard"), reason="tensorboard is not installed"
)
SECRETS = ("hf_" + "a" * 30, "sk-" + "b" * 30, "pa55word", "c" * 40)

# What a user's script logs: late values, values that are not finite, secrets, all kinds of records.
SCRIPT = """
import os, sys, gaia_metrics
folder, sinks, first, last = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
config = {"model": {"depth": 12}, "api_key": "sk-" + "b" * 30, "db": "postgres://me:pa55word@db/x"}
run = gaia_metrics.init("gchat", "d12", config, dir=folder, sinks=sinks, tags=["base", "<b>"],
                        notes="why: hf_" + "a" * 30, system_interval=0)
for step in range(first, last):
    run.log(step, {"train/loss": 3.0 - step / 100, "train/lr": 1e-3})
    if step % 10 == 0:
        run.log(max(first, step - 7), {"eval/bpb": float("nan") if step == 20 else step / 7})
        for n in range(2):
            run.text(step, "samples", f"{step}.{n} <b>a & b</b> hf_" + "a" * 30)
        run.histogram(step, "weights", [-2.0, 0.0, 0.5, 1.0, 1.0])
        run.alert("seen", f"at {step}; password=pa55word", "info")
run.wait_durable(last - 1)
EXIT
"""


def recorded(folder, sinks, first=0, last=50, end="run.finish()", argv=()):
    command = [sys.executable, "-c", SCRIPT.replace("EXIT", end), str(folder), sinks]
    env = os.environ | {"WANDB_API_KEY": "c" * 40, "PYTHONPATH": str(ROOT)}
    command += [str(first), str(last), *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def no_secret_in(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert [s for s in (*SECRETS, "from-argv") if s.encode() in data] == [], path


# -- without the packages ---------------------------------------------------------------------


def test_a_missing_package_and_an_unknown_sink_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # W&B's users have such a folder: it is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for package in mirror.SINKS:
        monkeypatch.delitem(sys.modules, package, raising=False)
    for sink in mirror.SINKS:
        with pytest.raises(gaia_metrics.MetricsError) as raised:
            gaia_metrics.init("p", "n", dir=tmp_path / "run", sinks=[sink])
        assert str(raised.value) == (
            f"sinks: {sink} is not installed; run `pip install -e '.[{sink}]'` in the clone of gaia"
        )
    with pytest.raises(gaia_metrics.MetricsError, match="'mlflow' is unknown; use wandb or"):
        gaia_metrics.init("p", "n", dir=tmp_path / "run", sinks=["mlflow"])
    with pytest.raises(gaia_metrics.MetricsError, match=r"is no list; use sinks=\['wandb'\]"):
        gaia_metrics.init("p", "n", dir=tmp_path / "run", sinks="wandb")
    assert not (tmp_path / "run").exists()


class Broken:
    """A target that raises wherever it is asked to do something."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        def fail(*arguments):
            raise self.error

        return fail


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1)])
def test_a_sink_that_fails_never_harms_the_run(tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr(mirror, "installed", lambda package: True)
    monkeypatch.setattr(mirror, "open_target", lambda name, opened: Broken(error))
    run = gaia_metrics.init("p", "n", dir=tmp_path / "run", sinks=["wandb"], system_interval=0)
    for step in range(100):
        run.log(step, {"loss": float(step)})
    run.text(1, "samples", "a")
    run.finish()
    assert [line["loss"] for line in lines(run.dir)] == [float(step) for step in range(100)]
    assert capsys.readouterr().err.count("the mirror for wandb lacks a part") == 1


def test_a_sink_that_cannot_be_opened_never_harms_the_run(tmp_path, monkeypatch, capsys):
    def refuse(name, opened):
        raise RuntimeError("no service, token=pa55word-1")

    monkeypatch.setattr(mirror, "installed", lambda package: True)
    monkeypatch.setattr(mirror, "open_target", refuse)
    run = gaia_metrics.init("p", "n", dir=tmp_path / "run", sinks=["wandb"], system_interval=0)
    run.log(0, {"loss": 1.0})
    run.finish()
    assert len(lines(run.dir)) == 1
    said = capsys.readouterr().err
    assert "the mirror for wandb cannot be opened (RuntimeError: no service" in said


def test_a_sink_that_hangs_is_left_behind(monkeypatch):
    release, said = threading.Event(), []
    target = Broken(None)
    target.values = lambda *arguments: release.wait(30)
    target.flush = target.record = target.close = lambda *arguments: None
    monkeypatch.setattr(mirror, "MOST_WAITING", 10)
    hanging = mirror.Mirror("wandb", target, lambda key, problem, remedy: said.append(problem))
    for step in range(20):
        hanging.values(step, 0, {"loss": 1.0, "lr": 1.0}, False)
    assert set(said) == {"the mirror for wandb is too slow: it lacks values"}
    hanging.end("finished")
    hanging.close(0.05)
    assert said[-1] == "the mirror for wandb is not through yet"
    release.set()
    hanging.close(30)


@pytest.mark.parametrize("values", [
    [0.0], [], [1.0, 2.0, 1e9], [-3.0, -1e-9], [0.0, -1.0], [0.0, 5.0], [-1.0, 0.0, 2.0],
    [-9.0, 0.0, 2.0], [1e308, -1e308, 5e-324], [float("nan"), 1.0],
])  # fmt: skip
def test_buckets_survive_the_way_there_and_back(values):
    record = summarize(np.array(values))
    bounds, counts = edges(record)
    assert len(bounds) == len(counts) + 1 and sum(counts) == record["count"]
    assert all(a < b for a, b in itertools.pairwise(bounds)), bounds
    for value in filter(math.isfinite, values):  # each value is in a bucket that is counted
        assert any(
            n and a <= value <= b
            for (a, b), n in zip(itertools.pairwise(bounds), counts, strict=True)
        )
    again = of_buckets(bounds, counts)
    assert again["count"] == record["count"]
    zeros = np.array(values) == 0
    if record["scale"] == 4 and (zeros | (np.abs(values) > 1e-6)).all():
        assert again["zero_count"] == zeros.sum()
        assert (again["positive"], again["negative"]) == (record["positive"], record["negative"])


# -- with them --------------------------------------------------------------------------------


def wandb_records(folder):
    """Records as W&B's own program prints them, by type, for each attempt."""
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json"]
    for path in sorted((folder / "mirrors/wandb").glob("offline-run-*/*.wandb")):
        done = subprocess.run(
            [*command, path],
            env=os.environ | {"WANDB_MODE": "offline"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        yield (
            path.parent,
            {
                kind: [r[kind] for r in records if r["type"] == kind]
                for kind in {r["type"] for r in records}
            },
        )


def check_rows(rows, metrics, first):
    """Every value of metrics.jsonl from a step on is in W&B's rows, with its step and time."""
    mirrored = {}
    for row in rows:
        for name, value in row.items():
            if name[:1] != "_" and name != "step" and "." not in name:  # media are flattened
                mirrored[row["step"], name] = float(value)
    wanted = {
        (line["step"], name): float(value)
        for line in metrics
        for name, value in line.items()
        if name not in ("step", "time") and line["step"] >= first
    }
    assert mirrored == pytest.approx(wanted, nan_ok=True)


@pytest.mark.slow
@needs_wandb
def test_wandb_reads_the_run(tmp_path):
    folder = tmp_path / "d12"
    done = recorded(folder, "wandb", argv=["sk-from-argv"])
    assert done.returncode == 0 and "mirror" not in done.stderr, done.stderr
    [(place, records)] = wandb_records(folder)
    metrics = lines(folder)
    rows = [row["item"] for row in records["history"]]
    check_rows(rows, metrics, 0)
    times = {row["step"]: row["_timestamp"] for row in rows if "train/loss" in row}
    assert times == {line["step"]: pytest.approx(line["time"], abs=1e-3) for line in metrics}
    [run] = records["run"]
    info = json.loads((folder / "run.json").read_text())
    assert (run["run_id"], run["display_name"], run["project"]) == (info["id"], "d12", "gchat")
    assert run["tags"] == ["base", "<b>"] and run["notes"] == "why: (hidden)"
    assert run["config"]["update"]["model"] == {"depth": 12}
    assert run["config"]["update"]["api_key"] == "(hidden)"
    assert [(a["title"], a["level"]) for a in records["alert"]][:5].count(("seen", "INFO")) == 4
    texts = [(place / "files" / row["samples.path"]).read_text() for row in rows
             if "samples.path" in row]  # fmt: skip
    assert sorted(texts) == sorted(
        f"<pre>{step}.{n} &lt;b&gt;a &amp; b&lt;/b&gt; (hidden)</pre>"
        for step in range(0, 50, 10)
        for n in range(2)
    )
    shapes = [(sum(row["weights.values"]), len(row["weights.bins"]) - len(row["weights.values"]))
              for row in rows if "weights.bins" in row]  # fmt: skip
    assert shapes == [(5, 1)] * 5
    assert records["exit"][0].get("exit_code", 0) == 0
    assert records["metric"][0]["glob_name"] == "*"
    assert records["metric"][0]["step_metric"] == "step"
    no_secret_in(folder)


@pytest.mark.slow
@needs_wandb
def test_wandb_has_each_attempt_and_how_it_ended(tmp_path):
    folder = tmp_path / "d12"
    kill = f"""
import glob, time
size, same = -1, 0
while same < 40:  # until W&B's process has written nothing for four seconds
    time.sleep(0.1)
    now = sum(os.path.getsize(f) for f in glob.glob(folder + "/mirrors/wandb/*/*.wandb"))
    same = same + 1 if now == size > 10_000 else 0
    size = now
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert recorded(folder, "wandb", 0, 30, end=kill).returncode == -signal.SIGKILL
    done = recorded(folder, "wandb", 30, 50, end="raise SystemError('boom')")
    assert done.returncode == 1 and "mirror" not in done.stderr, done.stderr
    (_, first), (_, second) = wandb_records(folder)
    identity = first["run"][0]["run_id"]
    assert second["run"][0]["run_id"] == f"{identity}-2"
    assert second["run"][0]["run_group"] == first["run"][0]["run_group"] == identity
    assert second["run"][0]["config"]["update"]["gaia_resume_step"] == 29
    check_rows([r["item"] for r in first["history"]], lines(folder)[:30], 0)
    check_rows([r["item"] for r in second["history"] if r["item"]["step"] >= 30], lines(folder), 30)
    assert second["exit"][0]["exit_code"] == 1


@pytest.mark.slow
@needs_wandb
def test_the_run_outlives_wandbs_service(tmp_path):
    end = """
import psutil, time
for child in psutil.Process().children(recursive=True):
    child.kill()
for step in range(last, last + 100):
    run.log(step, {"train/loss": 1.0})
run.finish()
"""
    done = recorded(tmp_path / "d12", "wandb", 0, 20, end=end)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(tmp_path / "d12")] == list(range(120))
    assert done.stderr.count("the mirror for wandb") == 1, done.stderr


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keep_all = {"scalars": 0, "tensors": 0, "histograms": 0}
    events = EventAccumulator(str(folder / "mirrors/tensorboard"), size_guidance=keep_all)
    events.Reload()
    return events


@pytest.mark.slow
@needs_tensorboard
def test_tensorboard_reads_the_run(tmp_path):
    folder = tmp_path / "d12"
    done = recorded(folder, "tensorboard", argv=["sk-from-argv"])
    assert done.returncode == 0 and "mirror" not in done.stderr, done.stderr
    events, metrics = accumulated(folder), lines(folder)
    for name in ("train/loss", "train/lr", "eval/bpb"):
        scalars = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        wanted = {line["step"]: float(line[name]) for line in metrics if name in line}
        assert scalars == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    times = {scalar.step: scalar.wall_time for scalar in events.Scalars("train/loss")}
    assert times == {line["step"]: pytest.approx(line["time"], abs=1e-3) for line in metrics}
    texts = [t.tensor_proto.string_val[0].decode() for t in events.Tensors("samples")]
    assert len(texts) == 10 and texts[1] == "0.1 <b>a & b</b> (hidden)"
    histograms = events.Histograms("weights")
    assert [h.step for h in histograms] == [0, 10, 20, 30, 40]
    value = histograms[0].histogram_value
    assert (value.num, value.min, value.max, sum(value.bucket)) == (5, -2.0, 1.0, 5)
    alerts = [t.tensor_proto.string_val[0].decode() for t in events.Tensors("alerts/info")]
    assert alerts[0] == "seen: at 0; password=(hidden)" and len(alerts) == 5
    facts = events.Tensors("gaia/config")[0].tensor_proto.string_val[0].decode()
    facts = json.loads("\n".join(line[4:] for line in facts.splitlines()))
    assert facts["config"]["model"] == {"depth": 12} and facts["tags"] == ["base", "<b>"]
    no_secret_in(folder)


@pytest.mark.slow
@needs_tensorboard
def test_tensorboard_drops_what_a_resume_cuts(tmp_path):
    folder = tmp_path / "d12"
    kill = f"import os, time; time.sleep(4); os.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert recorded(folder, "tensorboard", 0, 30, end=kill).returncode == -signal.SIGKILL
    assert len(accumulated(folder).Scalars("train/loss")) == 30  # kill -9 after 4 s: flushed
    script = """
run = gaia_metrics.init("p", "n", dir=folder, sinks=sinks, resume_step=19, system_interval=0)
for step in range(20, 25):
    run.log(step, {"train/loss": -1.0})
run.finish()
"""
    assert recorded(folder, "tensorboard", 0, 0, end=script).returncode == 0
    scalars = {scalar.step: scalar.value for scalar in accumulated(folder).Scalars("train/loss")}
    assert list(scalars) == list(range(25))
    assert [scalars[step] for step in range(20, 25)] == [-1.0] * 5

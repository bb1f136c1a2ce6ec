"""Runs that the real W&B and TensorBoard packages wrote, imported into run folders."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaia_metrics import cli, query
from gaia_metrics.errors import MetricsError
from gaia_metrics.importing import wandb_log, write
from gaia_metrics.recording import mirror
from gaia_metrics.storage import segments

ROOT = Path(__file__).resolve().parents[2]
needs_wandb = pytest.mark.skipif(not mirror.installed("wandb"), reason="wandb is not installed")
needs_tensorboard = pytest.mark.skipif(
    not mirror.installed("tensorboard"), reason="tensorboard is not installed"
)

# What people do with W&B: nested values, an epoch axis, media, tables, texts, a summary of their
# own, a config that changes, an alert; SPEC is (folder, run id, first step, last step).
WANDB = """
import json, sys
import numpy as np, wandb
folder, identity, first, last, code, end = json.loads(sys.argv[1])
run = wandb.init(project="vision", name="resnet", id=identity, dir=folder, mode="offline",
    config={"lr": 0.1, "net": {"depth": 50}, "hub_token": "hf_" + "a" * 30}, tags=["old", "x"],
    notes="a note", settings=wandb.Settings(console="off", silent=True, x_disable_stats=True))
run.define_metric("epoch")
run.define_metric("val/*", step_metric="epoch")
for step in range(first, last):
    run.log({"loss": 1 / (step + 1), "nested": {"a": step, "b": True}, "epoch": step // 10},
            step=step)
    if step % 10 == 0:
        run.log({"val/acc": step / 100, "h": wandb.Histogram(np.arange(8.0) - 2), "step": step,
                 "sample": f"text {step} password=pa55word", "bad": float("nan"),
                 "table": wandb.Table(columns=["prompt", "answer"], data=[["a", 1], ["b", 2]]),
                 "image": wandb.Image(np.zeros((2, 2, 3), np.uint8))}, step=step)
run.config.update({"late": 7})
run.summary["best"] = 0.5
run.alert("oom", "too big", level="ERROR")
if end:
    run.finish(exit_code=code)
else:
    import time
    time.sleep(600)
"""


def train(folder, identity="abc123", first=0, last=30, code=0):
    spec = json.dumps([str(folder), identity, first, last, code, True])
    done = subprocess.run(
        [sys.executable, "-c", WANDB, spec], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def imported(kind, path, root):
    return [vars(report) for report in write.import_runs(kind, path, root)]


def values(run_folder, name):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row[name] for row in map(json.loads, lines) if name in row}


def records(run_folder, kind):
    return [r.data for r in segments.read_all(run_folder / "metrics") if r.kind == kind]


def test_what_cannot_be_imported_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mirror, "installed", lambda package: True)
    cases = [
        ("wandb", "nowhere", "nowhere does not exist; check the path"),
        ("tensorboard", str(tmp_path), "holds no event files (*tfevents*); check the path"),
    ]
    for kind, path, said in cases:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["import", kind, path, "--dir", str(tmp_path / "runs")])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(mirror, "installed", lambda package: False)
    with pytest.raises(SystemExit):
        cli.main(["import", "wandb", str(tmp_path)])
    assert "import: wandb is not installed; run `pip install" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_is_no_log_of_wandb_is_one_line(tmp_path, capsys):
    (tmp_path / "run-x.wandb").write_bytes(b"no log")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["import", "wandb", str(tmp_path), "--dir", str(tmp_path / "runs")])
    assert stopped.value.code == 2
    said = "run-x.wandb is no log of W&B; give a run folder of W&B"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def wandb_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb")
    train(folder)
    return folder


@pytest.mark.slow
@needs_wandb
def test_a_run_of_wandb_comes_along(wandb_folder, tmp_path):
    [report] = imported("wandb", wandb_folder, tmp_path)
    run = Path(report["path"])
    assert run == tmp_path / "resnet" and report["status"] == "imported"
    assert values(run, "loss") == {step: 1 / (step + 1) for step in range(30)}
    assert values(run, "nested.a") == {step: step for step in range(30)}
    assert set(values(run, "nested.b").values()) == {1.0}
    assert values(run, "val/acc") == {0: 0.0, 1: 0.1, 2: 0.2}  # against epoch
    assert values(run, "train/step") == {0: 0, 10: 10, 20: 20}  # `step` is metrics.jsonl's own
    assert values(run, "bad") == dict.fromkeys((0, 10, 20), "NaN")
    assert values(run, "best") == {29: 0.5}
    texts = [(t["name"], t["step"], t["text"]) for t in records(run, "text")]
    assert texts.count(("sample", 20, "text 20 password=(hidden)")) == 1
    assert texts.count(("table", 20, "prompt: b\nanswer: 2")) == 1
    assert len(texts) == 3 * (1 + 2)
    histogram = records(run, "histogram")[0]
    assert (histogram["count"], histogram["min"], histogram["max"]) == (8, -2.0, 5.0)
    assert [(a["name"], a["level"]) for a in records(run, "alert")] == [("oom", "error")]
    info = json.loads((run / "run.json").read_text())
    assert (info["project"], info["tags"], info["notes"]) == ("vision", ["old", "x"], "a note")
    assert info["config"] == {
        "lr": 0.1, "net": {"depth": 50}, "hub_token": "(hidden)", "late": 7,
    }  # fmt: skip
    assert info["status"] == "finished" and report["skipped"] == "3 image-file"
    assert abs(info["ended"] - time.time()) < 3600 and info["attempts"][0]["host"]
    assert [row["name"] for row in query.connect(str(tmp_path)).runs()] == ["resnet"]


@pytest.mark.slow
@needs_wandb
def test_an_import_is_done_once_and_follows_what_grows(wandb_folder, tmp_path):
    source, runs = tmp_path / "wandb", tmp_path / "runs"
    shutil.copytree(wandb_folder, source, symlinks=True)
    [log] = source.rglob("run-*.wandb")
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])  # as it was in the middle of training
    [first] = imported("wandb", source, runs)
    early = values(runs / "resnet", "loss")
    assert early and early == {step: 1 / (step + 1) for step in range(len(early))}
    assert json.loads((runs / "resnet/run.json").read_text())["status"] == "running"
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*")}
    assert imported("wandb", source, runs)[0]["status"] == "unchanged"
    moved = source.rename(tmp_path / "elsewhere")
    assert imported("wandb", moved, runs)[0]["status"] == "unchanged"
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*")} == before
    [log] = moved.rglob("run-*.wandb")
    log.write_bytes(whole)
    [again] = imported("wandb", moved, runs)
    assert (again["status"], again["run"]) == ("updated", first["run"])
    assert values(runs / "resnet", "loss") == {step: 1 / (step + 1) for step in range(30)}
    assert sorted(p.name for p in runs.iterdir()) == ["resnet"]


@pytest.mark.slow
@needs_wandb
def test_a_killed_import_leaves_nothing_half_done(tmp_path):
    source, runs = tmp_path / "wandb", tmp_path / "runs"
    for n in range(3):
        train(source, f"run{n}", last=40)
    script = """
import os, signal, sys
from gaia_metrics.importing import write
write.BUFFERED = 5
begun = write._Writer.take
def take(self, progress):
    if os.path.isdir(os.path.join(sys.argv[2], "resnet")):  # the second one: killed half-way
        def progress(size, left=[30]):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    begun(self, progress)
write._Writer.take = take
from pathlib import Path
list(write.import_runs("wandb", Path(sys.argv[1]), Path(sys.argv[2])))
"""
    command = [sys.executable, "-c", script, str(source), str(runs)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len([p for p in runs.iterdir() if not p.name.startswith(".")]) == 1
    statuses = [report["status"] for report in imported("wandb", source, runs)]
    assert statuses == ["unchanged", "imported", "imported"]
    assert len(query.connect(str(runs)).runs()) == 3
    assert not list(runs.glob(".*"))
    for run in runs.iterdir():
        assert len(values(run, "loss")) == 40
        assert len(records(run, "text")) == 4 * 3  # nothing of the killed import is in it


@pytest.mark.slow
@needs_wandb
def test_files_of_one_id_are_attempts_of_one_run(tmp_path):
    source, runs = tmp_path / "wandb", tmp_path / "runs"
    train(source, "same", 0, 20, code=1)
    time.sleep(1.1)  # W&B names its folders by the second
    train(source, "same", 20, 40)
    assert len(imported("wandb", source, runs)) == 1
    info = json.loads((runs / "resnet/run.json").read_text())
    assert len(info["attempts"]) == 2 and info["status"] == "finished"
    assert values(runs / "resnet", "loss") == {step: 1 / (step + 1) for step in range(40)}


@pytest.mark.slow
@needs_wandb
def test_the_log_is_read_as_wandbs_own_program_reads_it(wandb_folder, tmp_path):
    [log] = wandb_folder.rglob("run-*.wandb")
    told = subprocess.run(
        [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", log],
        env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    theirs = [json.loads(line) for line in told.stdout.splitlines()]
    ours = [record for _, record in wandb_log.records(log)]
    assert [r.WhichOneof("record_type") for r in ours] == [r["type"] for r in theirs]
    for mine, their in zip(ours, theirs, strict=True):
        if their["type"] == "history":
            assert {".".join(i.nested_key) or i.key for i in mine.history.item} == set(
                their["history"]["item"]
            )
    data, torn = log.read_bytes(), tmp_path / "run-torn.wandb"
    chance = random.Random(0)
    for _ in range(200):  # cut anywhere, or damaged anywhere: what is whole before it is read
        cut = chance.randrange(7, len(data))
        torn.write_bytes(data[:cut])
        read = [record for _, record in wandb_log.records(torn)]
        assert read == ours[: len(read)]
        torn.write_bytes(data[:cut] + bytes([data[cut] ^ 0xFF]) + data[cut + 1 :])
        read = [record for _, record in wandb_log.records(torn)]
        assert read == ours[: len(read)] and len(read) < len(ours)


# -- TensorBoard ------------------------------------------------------------------------------


def write_events(folder, suffix="", first=0, last=30, purge=None):
    """Events as PyTorch's SummaryWriter writes them, by TensorBoard's own writer and builders.

    Source of the layout: torch/utils/tensorboard/summary.py (scalar, text, hparams) and writer.py.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder), filename_suffix=suffix)

    def add(step, **value):
        event = Event(wall_time=1.7e9 + step, step=step)
        event.summary.CopyFrom(Summary(value=[Summary.Value(**value)]))
        writer.add_event(event)

    if purge is not None:
        writer.add_event(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))
    start = HParamsPluginData(session_start_info=SessionStartInfo(), version=0)
    start.session_start_info.hparams["lr"].number_value = 0.1
    start.session_start_info.hparams["api_key"].string_value = "sk-" + "b" * 30
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=start.SerializeToString())
    add(0, tag="_hparams_/session_start_info", metadata=SummaryMetadata(plugin_data=plugin))
    text_plugin = SummaryMetadata.PluginData(plugin_name="text", content=b"\x08\x01")
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    for step in range(first, last):
        add(step, tag="loss", simple_value=step / 8)
        add(step, tag="step", simple_value=step)
        if step % 10 == 0:
            text = TensorProto(dtype="DT_STRING", string_val=[b"hello %d" % step])
            text.tensor_shape.CopyFrom(dims)
            meta = SummaryMetadata(plugin_data=text_plugin)
            add(step, tag="sample/text_summary", metadata=meta, tensor=text)
            limits, counts = [-0.5, 0.5, 1.0, 2.5], [1, 0, 1, 1]
            histo = HistogramProto(min=-1, max=2, num=3, bucket_limit=limits, bucket=counts)
            add(step, tag="w", histo=histo)
            add(step, tag="image", image=Summary.Image(height=1, width=1))
    writer.close()


@pytest.mark.slow
@needs_tensorboard
def test_event_files_come_along(tmp_path):
    logs, runs = tmp_path / "logs", tmp_path / "runs"
    write_events(logs / "exp1" / "train")
    write_events(logs / "exp2", last=10)
    reports = imported("tensorboard", logs, runs)
    assert [(r["name"], r["status"]) for r in reports] == [
        ("exp1/train", "imported"), ("exp2", "imported"),
    ]  # fmt: skip
    run = runs / "exp1_train"
    assert values(run, "loss") == {step: step / 8 for step in range(30)}
    assert values(run, "train/step") == {step: step for step in range(30)}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["time"] for line in lines] == [1.7e9 + step for step in range(30)]
    texts = [(t["name"], t["step"], t["text"]) for t in records(run, "text")]
    assert texts == [("sample", step, f"hello {step}") for step in (0, 10, 20)]
    histogram = records(run, "histogram")[0]
    assert (histogram["count"], histogram["step"]) == (3, 0)
    assert sum(histogram["positive"][1]) == 2 and sum(histogram["negative"][1]) == 1
    info = json.loads((run / "run.json").read_text())
    assert info["config"] == {"lr": 0.1, "api_key": "(hidden)"}
    assert "3 image" in reports[0]["skipped"]
    again = imported("tensorboard", logs, runs)
    assert [r["status"] for r in again] == ["unchanged", "unchanged"]
    write_events(logs / "exp2", ".more", first=5, last=20, purge=5)
    assert [r["status"] for r in imported("tensorboard", logs, runs)] == ["unchanged", "updated"]
    assert values(runs / "exp2", "loss") == {step: step / 8 for step in range(20)}
    assert len(json.loads((runs / "exp2/run.json").read_text())["attempts"]) == 2


@pytest.mark.slow
@needs_tensorboard
@needs_wandb
def test_a_mirrored_run_comes_back_the_same(tmp_path):
    script = """
import sys, gaia_metrics
for resume_step in (None, 19):
    run = gaia_metrics.init("gchat", "d12", {"depth": 12}, dir=sys.argv[1], tags=["base"],
        sinks=["wandb", "tensorboard"], resume_step=resume_step, system_interval=0)
    for step in range(0 if resume_step is None else 20, 30):
        run.log(step, {"loss": step / 8, "attempt": float(run.attempt)})
        run.histogram(step, "w", [1.0, -2.0, 0.0])
        run.text(step, "samples", f"<{step}> of {run.attempt}")
    run.finish()
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    source = tmp_path / "d12"
    subprocess.run([sys.executable, "-c", script, str(source)], env=env, check=True, timeout=120)
    for kind in mirror.SINKS:
        [report] = imported(kind, source, tmp_path / kind)
        run = Path(report["path"])
        for name in ("loss", "attempt"):
            assert values(run, name) == values(source, name)
        for what in ("text", "histogram"):
            mine = [(r["name"], r["step"], r.get("text"), r.get("positive"), r.get("negative"),
                     r.get("zero_count")) for r in records(source, what)]  # fmt: skip
            theirs = [(r["name"], r["step"], r.get("text"), r.get("positive"), r.get("negative"),
                       r.get("zero_count")) for r in records(run, what)]  # fmt: skip
            assert theirs == mine
        info = json.loads((run / "run.json").read_text())
        assert (info["name"], info["config"], info["tags"]) == ("d12", {"depth": 12}, ["base"])
        assert [a["resume_step"] for a in info["attempts"]] == [-1, 19]


@pytest.mark.slow
@needs_tensorboard
def test_the_command_line_imports_and_never_overwrites_what_went_on(tmp_path, capsys):
    logs, runs = tmp_path / "logs", tmp_path / "runs"
    write_events(logs / "exp")
    arguments = ["import", "tensorboard", str(logs), "--dir", str(runs), "--json"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--dry-run"])
    assert stopped.value.code == 0 and not runs.exists()
    assert json.loads(capsys.readouterr().out)[0]["status"] == "would be imported"
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert json.loads(capsys.readouterr().out)[0]["values"] == 60
    import gaia_metrics

    run = gaia_metrics.init("p", "exp", dir=runs / "exp", resume="must", system_interval=0)
    run.log(30, {"loss": 1.0})
    run.finish()
    write_events(logs / "exp", ".more", first=30, last=40)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    status = json.loads(capsys.readouterr().out)[0]["status"]
    assert status == "left alone: it was gone on with here"
    assert values(runs / "exp", "loss")[30] == 1.0
    with pytest.raises(MetricsError, match="does not exist"):
        imported("tensorboard", tmp_path / "nowhere", runs)

"""Mishaps around a run: training continues, the user hears of it once."""

import json
import math
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gaia_metrics
from gaia_metrics import cli, doctor
from gaia_metrics.reading.local import LocalSource
from gaia_metrics.recording.watch import Watch, WatchConfig
from gaia_metrics.storage import jsonl, segments


def lines(folder):
    return [jsonl.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def start(folder, **options):
    return gaia_metrics.init("p", "n", dir=folder, **{"system_interval": 0} | options)


def test_ten_thousand_names(tmp_path, capfd):
    run = start(tmp_path / "run")
    for step in range(3):
        run.log(step, {f"layer/{i}": float(i) for i in range(10_000)})
    run.finish()
    assert all(len(line) == 10_002 for line in lines(tmp_path / "run"))
    assert capfd.readouterr().err.count("metric names in one run") == 1


def test_steps_that_go_back(tmp_path, capfd):
    run = start(tmp_path / "run")
    for step in range(200):
        run.log(step, {"a": float(step)})
    assert run.wait_durable(199)
    for step in (5, 6, 7):
        run.log(step, {"a": float(step), "b": 1.0})
    run.finish()
    got = lines(tmp_path / "run")
    assert [line["step"] for line in got] == list(range(200))
    assert got[6]["b"] == 1.0
    err = capfd.readouterr().err
    assert err.count("steps should not go back") == 1 and "resume_step" in err


def test_a_clock_that_jumps(tmp_path, monkeypatch, capfd):
    run = start(tmp_path / "run")
    run.log(0, {"a": 1.0})
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
    run.log(1, {"a": 1.0})
    deadline = time.monotonic() + 120
    while "clock" not in run._warned and time.monotonic() < deadline:
        time.sleep(0.05)
    run.finish()
    assert capfd.readouterr().err.count("clock jumped by -3600 s") == 1
    times = [line["time"] for line in lines(tmp_path / "run")]
    assert 0 <= times[1] - times[0] < 60  # from the monotonic clock


def test_a_finished_run_goes_on_with_a_word(tmp_path, capfd):
    start(tmp_path / "run").finish()
    for _ in range(2):  # it logs the same steps again, without saying where it begins
        run = start(tmp_path / "run")
        for step in range(3):
            run.log(step, {"a": 1.0 + run.attempt})
        run.finish()
    assert run.attempt == 3 and capfd.readouterr().err.count("was finished") == 2
    assert [(line["step"], line["a"]) for line in lines(tmp_path / "run")] == [
        (step, 4.0) for step in range(3)
    ]
    assert not [f for f in doctor._look_segments(tmp_path / "run") if f.level == "problem"]
    run = start(tmp_path / "run", resume_step=1)  # which says it, so nothing is odd about it
    run.log(2, {"a": 9.0})
    run.finish()
    assert "was finished" not in capfd.readouterr().err
    assert [line["a"] for line in lines(tmp_path / "run")] == [4.0, 4.0, 9.0]


def test_a_read_only_folder(tmp_path, capfd):
    # Root may write everywhere but into /proc.
    parent = Path("/proc") if os.geteuid() == 0 else tmp_path
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    run = start(parent / "run")
    run.log(0, {"a": 1.0})
    run.finish()
    tmp_path.chmod(stat.S_IRWXU)
    assert "make the folder writable" in capfd.readouterr().err


def test_a_full_disk_for_the_spool(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:9")
    run = start(tmp_path / "run")

    def full(signal, request):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run._exporter.spool, "append", full)
    run.log(0, {"a": 1.0})
    assert run.wait_durable(0)  # the run folder has it
    run.finish()
    err = capfd.readouterr().err
    assert err.count("the spool cannot be written") == 1 and "--all" in err
    assert lines(tmp_path / "run")[0]["a"] == 1.0


def test_a_broken_run_json(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(gaia_metrics.MetricsError, match="move it away"):
        start(tmp_path / "run")


def test_secrets_are_not_kept(tmp_path):
    config = {"data": {"hf_token": "s3cret"}, "password": "s3cret", "model": {"max_token": 5}}
    start(tmp_path / "run", config=config).finish()
    text = (tmp_path / "run/run.json").read_text()
    assert "s3cret" not in text and json.loads(text)["config"]["model"] == {"max_token": 5}


def test_numpy_numbers_and_git(tmp_path):
    run = start(tmp_path / "run")
    run.log(np.int64(3), {"a": np.float32(1.5), "b": np.array(2), "c": np.ones(1)})
    run.log(4, {"d": np.ones(2)})
    run.finish()
    got = lines(tmp_path / "run")
    assert got[0] | {"time": 0} == {"step": 3, "time": 0, "a": 1.5, "b": 2.0, "c": 1.0}
    assert len(got) == 1
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert "python" in info["versions"] and set(info["git"]) <= {"commit", "branch", "dirty"}


def test_values_that_are_no_numbers(tmp_path, capfd):
    run = start(tmp_path / "run")
    run.log(0, {f"text/{i}": "words" for i in range(100)} | {"huge": 10**400, "a": 1e308})
    run.log(1, {"a": -1e308, "b": 1e308})
    run.finish()
    assert [line["a"] for line in lines(tmp_path / "run")] == [1e308, -1e308]
    err = capfd.readouterr().err
    assert err.count("=str is not one number") == 5 and err.count("more names hold") == 1


def test_doctor_says_that_a_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (finding,) = (f for f in doctor.examine(tmp_path / "file/runs", {}) if f.level == "problem")
    assert "cannot be written" in finding.fact and finding.remedy


def test_dashboard_url(tmp_path, monkeypatch):
    assert gaia_metrics.dashboard_url("202611-x") == ""
    monkeypatch.setenv("GAIA_GRAFANA_URL", "https://metrics.example.org/")
    run = start(tmp_path / "run")
    run.finish()
    assert run.url == f"https://metrics.example.org/d/gaia-run?var-run_id={run.id}"
    assert gaia_metrics.dashboard_url("") == ""


class Alerts(list):
    def __call__(self, level, title, text):
        self.append(title)


def feed(watch, name, values):
    for step, value in enumerate(values):
        watch.values(step, step * 10**9 + 1, {name: value}, False)


def test_watch_sees_each_trouble_once():
    for name, values, title in (
        ("train/grad_norm", [1.0, math.nan, math.nan], "not a number"),
        ("train/loss", [3.0 + 0.01 * (i % 5) for i in range(60)] + [9.0] * 3, "loss spike"),
        ("perf/tokens_per_s", [100.0] * 30 + [20.0] * 30, "throughput dropped"),
    ):
        alerts = Alerts()
        feed(Watch(alerts, WatchConfig()), name, values)
        assert alerts == [title], name
    alerts = Alerts()
    watch = Watch(alerts, WatchConfig())
    feed(watch, "train/loss", [5.0 / (1 + i / 10) for i in range(300)])
    feed(watch, "perf/tokens_per_s", [100.0, 90.0, 60.0, 100.0] * 30)
    assert alerts == []


def test_watch_sees_a_stall(monkeypatch):
    alerts = Alerts()
    watch = Watch(alerts, WatchConfig())
    feed(watch, "train/loss", [3.0] * 30)
    watch.flush(False)
    assert alerts == []
    now = time.monotonic() + 301
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch.flush(False)
    watch.flush(False)
    assert alerts == ["stalled"]


def test_an_alert_of_the_last_value_is_kept(tmp_path):
    run = gaia_metrics.init("p", "nan", dir=tmp_path / "nan", system_interval=0)
    run.log(3, {"train/loss": float("nan")})
    run.finish("crashed")  # at once, as after an exception
    records = segments.read_all(tmp_path / "nan/metrics")
    alerts = [r.data for r in records if r.kind == "alert"]
    assert [(a["name"], a["step"], a["level"]) for a in alerts] == [("not a number", 3, "error")]


def test_an_alert_stands_at_the_last_step_logged_before_it(tmp_path):
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
    run.log(41, {"a": 1.0})
    run.alert("oom", "device 3", "error")  # at once: the thread has not seen step 41 yet
    run.finish()
    (alert,) = (r for r in segments.read_all(tmp_path / "n/metrics") if r.kind == "alert")
    assert alert.step == 41


NAMES = [
    "a/b", "a.b", "a b", "Größe", "loss 🔥", "\"quoted\"", "it's", "a\nb", "a\x00b", "${HOME}",
    "__proto__", "constructor", "a,b", "%s", "x" * 5000, "\ud800lone",
]  # fmt: skip


def test_names_of_any_kind_come_back(tmp_path, capsys):
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
    run.log(0, {name: float(i) for i, name in enumerate(NAMES)})
    run.text(0, NAMES[-1], "text \ud800 too")
    run.finish()
    kept = [name.encode("utf-8", "replace").decode() for name in NAMES]
    source = LocalSource(tmp_path)
    assert sorted(source.metric_names("n")) == sorted(kept)
    values = source.series(["n"], kept)
    assert dict(zip(values["metric"], values["value"], strict=True)) == {
        name: float(i) for i, name in enumerate(kept)
    }
    (record,) = (r for r in segments.read_all(tmp_path / "n/metrics") if r.kind == "text")
    assert (record.data["name"], record.data["text"]) == ("?lone", "text ? too")
    for command in (["show", "n"], ["export", "n"], ["ls"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command, "--dir", str(tmp_path)])
        assert stopped.value.code == 0, capsys.readouterr().err
    assert "loss 🔥" in capsys.readouterr().out


def test_threads_lose_nothing(tmp_path):
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)

    def log(thread):
        for step in range(1000):
            run.log(step, {f"t{thread}": float(step)})

    threads = [threading.Thread(target=log, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    lines = [json.loads(line) for line in (tmp_path / "n/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1000))
    assert all(line[f"t{n}"] == line["step"] for line in lines for n in range(8))

"""Reading runs back: folders, buckets, machines, the database, the command line."""

import csv
import getpass
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest

import gaia_metrics
from gaia_metrics import cli, query
from gaia_metrics.reading import local_run, remote
from gaia_metrics.sending.sync import sync
from tests.fakes import clickhouse, otlp, sshd

STEPS = 400


def record(folder, name, scale, status="finished"):
    config = {"model": {"depth": 12}, "optim": {"lr": scale}}
    run = gaia_metrics.init("gchat", name, config, dir=folder, system_interval=0.2)
    for step in range(STEPS):
        run.log(step, {"train/loss": scale / (step + 1), "train/tokens": step * 100.0})
        if step % 100 == 0:
            run.log(step, {"eval/val_bpb": scale + step})
            run.text(step, "samples", f"{name} at {step}")
    run.log(STEPS, {"train/loss": float("nan")})
    assert run.wait_durable(STEPS)
    run.finish(status)
    return run.id


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    ids = [record(root / "a", "d12", 1.0), record(root / "deep/er/b", "d20", 2.0, "crashed")]
    return root, ids


def resumed(folder, endpoint):
    """A run that came to step 10, was taken up at 6 and stopped at 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120000")
        for attempt, steps, at in ((1.0, range(11), None), (2.0, range(7, 9), 6)):
            run = gaia_metrics.init(
                "gchat", "resumed", dir=folder, resume_step=at, system_interval=0
            )
            for step in steps:
                run.log(step, {"a": attempt, "train/tokens": 100.0 * step})
            run.finish()
    sync(folder, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})


@pytest.fixture(scope="module")
def database(runs, tmp_path_factory):
    """The same runs in the real engine, sent there by `sync`, behind an HTTP interface."""
    engine = clickhouse.Database(tmp_path_factory.mktemp("db") / "ch")
    with otlp.serve(engine.insert) as receiver:
        reports = sync(runs[0], {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint})
        assert sum(r.points for r in reports) > 4 * STEPS
        again = sync(runs[0], {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint})
        assert sum(r.points for r in again) == 0
        resumed(tmp_path_factory.mktemp("resumed") / "r", receiver.http_endpoint)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sql = self.rfile.read(int(self.headers["content-length"])).decode()
            arguments = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            used = {k[6:]: v for k, v in arguments.items() if k.startswith("param_")}
            sql, _, form = sql.rpartition("\nFORMAT ")
            assert set(arguments) == {f"param_{k}" for k in used}  # no setting: see test_reader
            try:
                status, body = 200, engine.answer(sql, form, **used)
            except Exception as error:
                status, body = 500, str(error).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield query.connect(f"clickhouse://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    engine.close()


@pytest.fixture(params=["folder", "clickhouse"])
def source(request, runs):
    if request.param == "folder":
        return query.connect(runs[0])
    return request.getfixturevalue("database")


def test_runs(source, runs):
    frame = query.runs(source).set_index("name")
    assert frame.loc["d12", "run"] == runs[1][0]
    assert frame.loc["d20", "status"] == "crashed"
    assert frame.loc["d12", "last_step"] == STEPS
    assert np.isnan(frame.loc["d12", "loss"]) and frame.loc["d20", "bpb"] == 302.0


def test_series_by_every_axis(source):
    frame = query.series(source, ["d12", "d20"], ["train/loss"])
    for name, scale in (("d12", 1.0), ("d20", 2.0)):
        run = query.runs(source).set_index("name").loc[name, "run"]
        one = frame[frame.run == run]
        assert list(one.x) == list(range(STEPS + 1))
        assert np.allclose(one.value[:-1], scale / (np.arange(STEPS) + 1)) and np.isnan(
            one.value.iloc[-1]
        )
    few = query.series(source, ["d12"], ["train/tokens"], points=10)
    assert len(few) == 10 and few.low[0] == 0.0 and few.high.max() == (STEPS - 1) * 100
    tokens = query.series(source, ["d12"], ["eval/val_bpb"], x="tokens")
    assert list(tokens.x) == [0.0, 10_000.0, 20_000.0, 30_000.0]
    seconds = query.series(source, ["d12"], ["eval/val_bpb"], x="time")
    assert seconds.x[0] == 0.0 and seconds.x.is_monotonic_increasing
    with pytest.raises(gaia_metrics.MetricsError, match="x='epoch'"):
        query.series(source, ["d12"], ["eval/val_bpb"], x="epoch")
    with pytest.raises(gaia_metrics.MetricsError, match="nobody"):
        query.series(source, ["nobody' OR 1=1"], ["eval/val_bpb"])


def test_metrics_texts_system_compare(source):
    metrics = query.metrics(source, "d12").set_index("metric")
    assert metrics.loc["train/loss", "count"] == STEPS + 1
    assert metrics.loc["train/loss", "max"] == 1.0 and metrics.loc["eval/val_bpb", "last"] == 301.0
    texts = query.texts(source, "d20")
    assert list(texts.text) == [f"d20 at {s}" for s in (0, 100, 200, 300)]
    assert [a["name"] for a in source.texts("d12", "alert")] == ["not a number"]
    assert "process.memory.usage" in set(query.system(source, "d12").metric)
    table = query.compare(source, ["d12", "d20"])
    assert list(table["config.optim.lr"].astype(float)) == [1.0, 2.0]
    assert "config.model.depth" not in table


def test_processes_are_told_apart(tmp_path):
    folder = tmp_path / "run"
    first = gaia_metrics.init("p", "n", dir=folder, system_interval=0)
    other = gaia_metrics.init("p", "n", dir=folder, system_interval=0, process_index=1)
    assert (first.attempt, other.attempt) == (1, 1)
    for run, value in ((first, 1.0), (other, 2.0)):
        run.log(0, {"train/loss": value})
        run.finish()
    last = {m["metric"]: m["last"] for m in query.connect(tmp_path).metrics("n")}
    assert last == {"train/loss": 1.0, "train/loss #1": 2.0}
    assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == 1


def test_parquet_is_only_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(local_run, "COMPACT_BYTES", 0)
    record(tmp_path / "a", "d12", 1.0)
    first = query.connect(tmp_path).series(["d12"], ["train/loss"])
    cache = tmp_path / "a/metrics/compact.parquet"
    assert cache.exists()
    monkeypatch.setattr(local_run, "decode", lambda path: pytest.fail("the cache was not used"))
    again = query.connect(tmp_path).series(["d12"], ["train/loss"])
    assert np.array_equal(first["value"], again["value"], equal_nan=True)
    monkeypatch.undo()
    run = gaia_metrics.init("gchat", "d12", dir=tmp_path / "a", resume_step=100, system_interval=0)
    run.finish()
    assert len(query.connect(tmp_path).series(["d12"], ["train/loss"])["x"]) == 101
    cache.write_bytes(b"broken")
    assert len(query.connect(tmp_path).series(["d12"], ["train/loss"])["x"]) == 101


def test_a_bucket(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path))
    bucket = fsspec.filesystem("memory")
    bucket.put(str(runs[0]), "/bucket/runs", recursive=True)
    bucket.pipe("/bucket/runs/a/checkpoints/huge.bin", b"x")
    source = query.connect("memory://bucket/runs")
    assert {row["name"] for row in source.runs()} == {"d12", "d20"}
    assert len(source.series(["d12"], ["train/loss"])["x"]) == STEPS + 1
    assert not list(tmp_path.rglob("huge.bin"))
    with pytest.raises(gaia_metrics.MetricsError, match="nowhere"):
        query.connect("nowhere://x")


def short(folder, steps, value):
    run = gaia_metrics.init("p", "d12", dir=folder, system_interval=0)
    for step in steps:
        run.log(step, {"train/loss": value})
    run.finish()


def replace_run(folder):
    """Two attempts of a run, which is deleted for another one of the same folder; then that goes.

    Yields the values there are at each state.
    """
    short(folder, range(5), 100.0)
    short(folder, range(5, 10), 100.0)
    yield [100.0] * 10
    shutil.rmtree(folder)
    short(folder, range(5), 1.0)  # of the size of the first segment
    for path in folder.rglob("*"):  # rsync tells times apart by seconds
        os.utime(path, (path.stat().st_mtime + 10,) * 2)
    yield [1.0] * 5
    shutil.rmtree(folder)
    yield []


def values(source):
    return source.series(["d12"], ["train/loss"])["value"] if source.runs() else []


@pytest.mark.parametrize(
    "held", [True, False]
)  # one source all along, as the page has, or new ones
def test_a_deleted_runs_values_are_in_no_other_run(tmp_path, monkeypatch, held):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(local_run, "COMPACT_BYTES", 0)
    monkeypatch.setattr(remote, "REFRESH_S", 0.0)
    (tmp_path / "there").mkdir()
    source = query.connect(f"file://{tmp_path}/there")
    for expected in replace_run(tmp_path / "there/deep/d12"):
        source = source if held else query.connect(f"file://{tmp_path}/there")
        assert values(source) == expected
        assert values(query.connect(tmp_path / "there")) == expected
    assert not list(source.root.iterdir())


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_rsync_drops_what_is_gone_there(tmp_path, monkeypatch):
    """The real rsync; `ssh` runs the other side's command here."""
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(local_run, "COMPACT_BYTES", 0)
    (tmp_path / "ssh").write_text(
        '#!/bin/bash\nwhile [[ $1 != node ]]; do shift; done\nexec "${@:2}"\n'
    )
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "there").mkdir()
    for expected in replace_run(tmp_path / "there/d12"):
        source = query.connect(f"ssh://node/{tmp_path}/there")
        assert values(source) == expected
    assert not list(source.root.iterdir())


@pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)
def test_another_machine(runs, tmp_path, monkeypatch):
    """A real OpenSSH server and rsync; `ssh` only gets the test's own configuration."""
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    sshd.make_key(tmp_path / "key")
    server = sshd.start(tmp_path / "node", (tmp_path / "key.pub").read_text())
    try:
        (tmp_path / "config").write_text(
            f"Host node\n  HostName 127.0.0.1\n  IdentityFile {tmp_path}/key\n"
            f"  UserKnownHostsFile {tmp_path}/known\n  StrictHostKeyChecking accept-new\n"
        )
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/ssh").write_text(
            f'#!/bin/bash\nexec {shutil.which("ssh")} -F {tmp_path}/config "$@"\n'
        )
        (tmp_path / "bin/ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        shutil.copytree(runs[0], server.home / "runs")
        (server.home / "runs/d12/checkpoints").mkdir(parents=True)
        (server.home / "runs/d12/checkpoints/huge.bin").write_text("x")
        address = f"ssh://{getpass.getuser()}@node:{server.port}"
        source = query.connect(f"{address}/runs")
        assert {row["name"] for row in source.runs()} == {"d12", "d20"}
        assert len(source.series(["d12"], ["train/loss"])["x"]) == STEPS + 1
        assert not list((tmp_path / "home").rglob("huge.bin"))
        absolute = query.connect(f"{address}/{server.home}/runs")  # two slashes: from the root
        assert {row["name"] for row in absolute.runs()} == {"d12", "d20"}
        with pytest.raises(gaia_metrics.MetricsError, match="cannot be read"):
            query.connect(f"{address}/nowhere")
    finally:
        server.stop()
    with pytest.raises(gaia_metrics.MetricsError, match="check that `ssh HOST` works"):
        query.connect(f"{address}/runs")
    with pytest.raises(gaia_metrics.MetricsError, match="names no host"):
        query.connect("ssh://-oProxyCommand=x/runs")


def call(capsys, *arguments):
    try:
        cli.main([str(a) for a in arguments])
        code = 0
    except SystemExit as error:
        code = error.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


def test_command_line(runs, capsys, tmp_path):
    root, ids = runs
    code, out, _ = call(capsys, "ls", "-d", root, "--json")
    assert code == 0 and {row["run"] for row in json.loads(out)} == set(ids)
    assert "crashed" in call(capsys, "ls", "-d", root, "--status", "crashed")[1]
    code, out, _ = call(capsys, "show", "d12", "-d", root, "--json")
    assert json.loads(out)["config"]["model"] == {"depth": 12}
    shown = call(capsys, "show", "d12", "-d", root)[1]
    assert "not a number" in shown and "model.depth = 12" in shown
    rows = json.loads(call(capsys, "compare", "d12", "d20", "-d", root, "--json")[1])
    assert rows[0]["train/loss"] == "NaN" and rows[1]["config.optim.lr"] == "2.0"
    assert "config.optim.lr" in call(capsys, "compare", "d12", "d20", "-d", root)[1]
    out = call(capsys, "export", "d12", "-d", root, "-m", "eval/val_bpb")[1]
    assert [row["value"] for row in csv.DictReader(io.StringIO(out))][-1] == "301.0"
    target = tmp_path / "x.parquet"
    assert call(capsys, "export", "d12", "-d", root, "-o", target)[0] == 0
    assert target.stat().st_size > 0
    lines = call(capsys, "tail", "d12", "-n", 2, "-d", root, "--json")[1].splitlines()
    assert [json.loads(line)["step"] for line in lines] == [STEPS - 1, STEPS]
    for arguments in (["ls", "-d", "/nope"], ["show", "nobody", "-d", root], ["sync", root],
                      ["nonsense"], ["ls", "--nope"], ["ui", root, "--port", 99999]):  # fmt: skip
        code, out, err = call(capsys, *arguments)
        assert code == 2 and len(err.splitlines()) == 1 and ";" in err


def test_series_of_a_resumed_run(database, tmp_path):
    """The database's rows of the void tail do not come back (the folder's were cut)."""
    frame = query.series(database, ["resumed"], ["a"])
    assert list(zip(frame.x, frame.value, strict=True)) == [
        (step, 1.0 if step <= 6 else 2.0) for step in range(9)
    ]
    assert query.metrics(database, "resumed").set_index("metric").loc["a", "last_step"] == 8
    with_counter = query.series(database, ["resumed"], ["a"], x="tokens")
    assert list(with_counter.x) == [100.0 * step for step in range(9)]


def test_doctor(tmp_path, capsys, monkeypatch):
    record(tmp_path / "good", "good", 1.0)
    assert call(capsys, "doctor", tmp_path)[0] == 0
    (tmp_path / "good/status.json").write_text("{torn")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:9")
    code, out, _ = call(capsys, "doctor", tmp_path, "--json")
    problems = [f for f in json.loads(out) if f["level"] == "problem"]
    assert code == 1 and any("does not take metrics" in p["fact"] for p in problems)
    assert any("status.json is not JSON" in p["fact"] for p in problems)


def test_help_is_fast_and_heavy_imports_are_late():
    code = "import sys, gaia_metrics.cli; print(sorted({'numpy', 'duckdb'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_show_prints_texts_and_system_values(tmp_path, capsys):
    run = gaia_metrics.init("p", "shown", dir=tmp_path / "shown", system_interval=0)
    run.meter_provider.get_meter("m").create_gauge("queue.length").set(3)
    run.log(1, {"train/loss": 2.0})
    run.text(1, "samples", "hello there")
    run.finish()
    with pytest.raises(SystemExit):
        cli.main(["show", "shown", "--dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "samples at step 1: hello there" in said and "queue.length = 3" in said


def test_a_misspelt_metric_is_a_mistake(source, capsys):
    where = source.root if hasattr(source, "root") else source._url
    where = str(where).replace("http://", "clickhouse://")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "d12", "--metric", "train/los", "--dir", where])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "perhaps you meant train/loss" in error
    assert len(error.splitlines()) == 1

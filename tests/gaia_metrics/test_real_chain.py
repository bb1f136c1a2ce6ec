"""The chain on real parts: client, Caddy, OpenTelemetry Collector, ClickHouse, clickhouse-go.

Every part runs with deploy/'s configuration and is killed with -9 while records flow. In the end
each record that was logged is in the database once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaia_metrics.sending.sync import sync
from tests.disks import fill, small_disk
from tests.fakes import clickhouse_http, real_parts
from tests.gaia_metrics.test_dashboards import expand
from tests.gaia_metrics.test_reader import grafana_queries, grafana_settings

pytestmark = pytest.mark.slow
STEPS, METRICS = 4000, 10

# Logs steps from where the folder ends: values, texts, alerts and histograms of known content.
CLIENT = f"""
import sys, time, gaia_metrics
folder, last, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
run = gaia_metrics.init("gchat", "chain", {{"depth": 12}}, dir=folder, system_interval=1.0)
print(run.resume_step + 1, flush=True)
for step in range(run.resume_step + 1, last):
    run.log(step, {{f"train/m{{i}}": step + i / 16 for i in range({METRICS})}})
    if step % 100 == 0:
        for n in range(3):
            run.text(step, "samples", f"text {{step}} {{n}}")
        run.histogram(step, "w", [1.0, 2.0, -3.0, 0.0])
        run.alert("seen", f"at {{step}}", "info")
    time.sleep(pause)
run.finish()
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Binaries built beforehand, so that their minutes are nobody's test."""
    real_parts.collector_binary(), real_parts.caddy_binary(), real_parts.reader_binary()
    return tmp_path_factory.mktemp("chain")


def client(folder, last, pause, addresses, protocol, log):
    env = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": addresses[protocol],
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{real_parts.TOKEN}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": addresses["certificate"],
    }
    command = [sys.executable, "-c", CLIENT, str(folder), str(last), str(pause)]
    out = open(log, "ab")  # noqa: SIM115
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=out, cwd=real_parts.ROOT
    )
    out.close()
    process.stdout.readline()
    process.stdout.close()
    return process, env


def newest_step(folder) -> int:
    """The last step in metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    whole = (line for line in reversed(lines) if line.endswith(b"\n"))
    return json.loads(next(whole, b'{"step": -1}'))["step"]


def reached(folder, step):
    real_parts.wait_for(lambda: newest_step(folder) >= step)


def drained(collector, engine):
    """The collector holds nothing: no insert came for some seconds, though it may."""
    seen, quiet = -1, time.monotonic()
    while time.monotonic() - quiet < 6:
        count = clickhouse_http.inserts(engine.port)
        if count != seen:
            seen, quiet = count, time.monotonic()
        time.sleep(0.3)
    assert collector.process.poll() is None


def stored(data, run_id):
    """Counts as grafana_reader sees them through clickhouse-go."""
    views = {
        "values": f"SELECT metric, count(), uniqExact(step), sum(value) FROM gaia.metrics "
        f"WHERE run_id = '{run_id}' AND metric LIKE 'train/%' GROUP BY metric ORDER BY metric",
        "texts": f"SELECT count(), uniqExact(body) FROM gaia.run_texts WHERE run_id = '{run_id}' "
        "AND kind = 'text'",
        "alerts": f"SELECT count(), uniqExact(body) FROM gaia.run_texts WHERE run_id = '{run_id}' "
        "AND kind = 'alert'",
        "histograms": "SELECT count(), uniqExact(step), sum(count) FROM gaia.run_histograms "
        f"WHERE run_id = '{run_id}' AND metric = 'w'",
        "run": f"SELECT status, last_step, attempts FROM gaia.runs WHERE run_id = '{run_id}'",
    }
    queries = [*views.values(), *(expand(sql, {"other": run_id}) for _, sql in grafana_queries())]
    timeout = grafana_settings()["max_execution_time"] - 5
    with clickhouse_http.serve(data, "grafana_reader") as reader:
        answers = real_parts.read(reader.port, "grafana_reader", queries, timeout)
    assert [a["error"] for a in answers if "error" in a] == []
    return {name: answer["rows"] for name, answer in zip(views, answers, strict=False)}


def check(data, run_id, attempts):
    got = stored(data, run_id)
    kept = (STEPS + 99) // 100
    for i, (metric, count, steps, total) in enumerate(got["values"]):
        assert (metric, count, steps) == (f"train/m{i}", STEPS, STEPS)
        assert total == STEPS * (STEPS - 1) / 2 + STEPS * i / 16
    assert len(got["values"]) == METRICS
    assert got["texts"] == [[3 * kept, 3 * kept]]
    assert got["alerts"] == [[kept, kept]]
    assert got["histograms"] == [[kept, kept, 4 * kept]]
    assert got["run"] == [["finished", STEPS - 1, attempts]]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_kills_everywhere(parts, protocol):
    root = parts / protocol.replace("/", "-")
    root.mkdir()
    data, folder = root / "ch", root / "run"
    with clickhouse_http.serve(data, "gaia_admin"):
        pass
    port = real_parts.free_port()
    collector = real_parts.Collector(root / "collector", port, root / "queue")
    with real_parts.caddy(root / "caddy", collector) as addresses:
        try:
            with clickhouse_http.serve(data, "otel_writer", port) as engine:
                collector.start()
                process, env = client(folder, STEPS, 0.002, addresses, protocol, root / "log")
                reached(folder, 300)
                collector.kill()
                reached(folder, 700)
                collector.start()
                reached(folder, 1100)
                engine.kill()  # the engine, with rows in flight
                engine.wait()
            reached(folder, 1500)
            with clickhouse_http.serve(data, "otel_writer", port) as engine:
                reached(folder, 1800)
                process.send_signal(signal.SIGKILL)  # the client
                process.wait()
                process, env = client(folder, STEPS, 0.0, addresses, protocol, root / "log")
                engine.kill()  # the rest is an hour's backlog of the collector
                engine.wait()
            assert process.wait(120) == 0
            sync(folder, env)  # finish() has patience for seconds only
            collector.kill()  # with its queue full
            collector.start()
            with clickhouse_http.serve(data, "otel_writer", port) as engine:
                drained(collector, engine)
                reports = sync(folder, env, everything=True)  # all of it once more
                assert reports[0].points > STEPS
                drained(collector, engine)
        finally:
            collector.stop()
            process.kill()
            process.wait()
    run_id = json.loads((folder / "run.json").read_text())["id"]
    check(data, run_id, attempts=2)
    print(f"{protocol}: {STEPS * METRICS} values logged and stored, lost 0, double 0")


def test_a_full_disk_under_the_collectors_queue(parts):
    root = parts / "full"
    root.mkdir()
    data, folder = root / "ch", root / "run"
    with clickhouse_http.serve(data, "gaia_admin"):
        pass
    port = real_parts.free_port()
    with small_disk(root / "disk", "3m") as disk:
        collector = real_parts.Collector(root / "collector", port, disk / "queue")
        with real_parts.caddy(root / "caddy", collector) as addresses:
            try:
                collector.start()
                filler = fill(disk, leave=64 << 10)
                process, env = client(
                    folder, STEPS, 0.001, addresses, "http/protobuf", root / "log"
                )
                assert process.wait(120) == 0
                assert list((folder / "metrics/spool").glob("p0-*.otlp"))  # refused: kept here
                filler.unlink()
                with clickhouse_http.serve(data, "otel_writer", port) as engine:
                    sync(folder, env)
                    drained(collector, engine)
            finally:
                collector.stop()
                process.kill()
                process.wait()
    assert not list(Path(folder / "metrics/spool").glob("*.otlp"))
    check(data, json.loads((folder / "run.json").read_text())["id"], attempts=1)

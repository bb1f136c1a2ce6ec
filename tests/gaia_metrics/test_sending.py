"""Sending never dies quietly: settings are checked at init, refused batches are tried again."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import gaia_metrics
from gaia_metrics import doctor
from gaia_metrics.errors import MetricsError
from gaia_metrics.reading.local import LocalSource
from gaia_metrics.sending import sender
from gaia_metrics.sending.builder import MAX_BYTES, Builder
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.spool import Spool
from gaia_metrics.sending.sync import sync
from tests.fakes import otlp
from tests.gaia_metrics.test_export import Collected, until

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
METRICS = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"


@pytest.mark.parametrize(
    "env",
    [
        {ENDPOINT: "http://localhost:99999"},
        {ENDPOINT: "http://localhost:abc"},
        {ENDPOINT: "http://[::1"},
        {ENDPOINT: "localhost:4318"},
        {ENDPOINT: "ftp://localhost"},
        {ENDPOINT: "http://local host:4318"},
        {ENDPOINT: "http://user:pw@localhost:4318"},
        {ENDPOINT: "grpc://localhost:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {ENDPOINT: "http://localhost:4318", HEADERS: "authorization=Bearer%20secret%0A"},
        {ENDPOINT: "http://localhost:4318", HEADERS: "a b=secret"},
        {ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"},
        {ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_TIMEOUT": "-1"},
        {ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_TIMEOUT": "²"},
        {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://localhost:4318"},
    ],
    ids=lambda env: next(reversed(env.items()))[1][:24],
)
def test_wrong_settings_are_one_line_at_init(env, tmp_path, monkeypatch, capfd):
    with pytest.raises(MetricsError) as caught:
        ExportSettings.from_env(env)
    assert "secret" not in str(caught.value) and "pw" not in str(caught.value)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
    run.log(0, {"a": 1.0})
    run.finish()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("gaia-metrics: OTEL_EXPORTER_OTLP_")
    status = json.loads((tmp_path / "n/status.json").read_text())
    assert status["sending"].startswith("off: OTEL_EXPORTER_OTLP_")
    assert any(f.level == "problem" for f in doctor.examine(tmp_path, env))


@pytest.mark.parametrize("proxy", ["http://me:s3cret@proxy:abc", "http://[s3cret", "http://:80"])
def test_a_proxy_that_is_no_address_is_one_line(tmp_path, monkeypatch, capfd, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    env = {ENDPOINT: "https://127.0.0.1:9"}
    monkeypatch.setenv(*next(iter(env.items())))
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
    run.log(0, {"a": 1.0})
    run.finish()
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "HTTPS_PROXY is no address" in line] == said[:1]
    assert len(said) == 2 and "gaia-metrics sync" in said[1] and "s3cret" not in str(said)
    with pytest.raises(MetricsError, match="HTTPS_PROXY is no address"):
        sync(tmp_path, env)
    problems = [f.fact for f in doctor.examine(tmp_path, env) if f.level == "problem"]
    assert "HTTPS_PROXY is no address" in problems


def test_a_timeout_of_0_is_no_limit(tmp_path, monkeypatch):
    """OpenTelemetry's configuration says so."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0")
    got = Collected()
    with otlp.serve(got) as receiver:
        for protocol in ("http/protobuf", "grpc"):
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            at = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
            monkeypatch.setenv(ENDPOINT, at)
            run = gaia_metrics.init("p", "n", dir=tmp_path / protocol, system_interval=0)
            run.log(0, {"a": 1.0})
            until(lambda run=run: (run.id, "a", 0) in got.points)
            run.finish()


def test_metrics_endpoint_alone(tmp_path, monkeypatch, capfd):
    got = Collected()
    with otlp.serve(got) as receiver:
        monkeypatch.setenv(METRICS, receiver.http_endpoint + "/v1/metrics")
        run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
        for step in range(40):
            run.log(step, {"a": 1.0})
            run.text(step, "t", "x")
        run.finish()
        assert sum(key[1] == "a" for key in got.points) == 40
        assert "texts and alerts are not sent" in capfd.readouterr().err
        with pytest.raises(MetricsError, match="runs hold texts"):
            sync(tmp_path / "n", os.environ)
        monkeypatch.setenv(ENDPOINT, receiver.http_endpoint)
        texts = receiver.requests
        sync(tmp_path / "n", os.environ, everything=True)
        assert receiver.requests > texts


def test_a_surprise_in_the_sender_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "BACKOFF_S", (0.05, 0.1))
    calls = []

    class Broken:
        def __init__(self, transport):
            self.transport = transport

        def send(self, signal, request):
            calls.append(signal)
            if len(calls) < 3:
                raise RuntimeError("surprise")
            return self.transport.send(signal, request)

        def close(self):
            self.transport.close()

    connect = sender.connect
    monkeypatch.setattr(sender, "connect", lambda settings: Broken(connect(settings)))
    got = Collected()
    with otlp.serve(got) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.http_endpoint)
        run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
        run.log(0, {"a": 1.0})
        until(lambda: (run.id, "a", 0) in got.points)
        run.finish()
    assert len(calls) >= 3  # two surprises, and the one that went through


@pytest.mark.parametrize(
    "status", [404, *(pytest.param(s, marks=pytest.mark.slow) for s in (301, 308, 400, 405, 407))]
)
def test_what_is_no_otlp_receiver_holds_all_back(tmp_path, monkeypatch, capfd, status):
    """A proxy's or TLS port's answer: nothing is set aside, all arrives once it is mended."""
    monkeypatch.setattr(sender, "BACKOFF_S", (0.05, 0.1))
    got, broken = Collected(), threading.Event()
    broken.set()
    html = {"content-type": "text/html"}
    fault = lambda n: (status, html) if broken.is_set() else None  # noqa: E731
    with otlp.serve(got, fault=fault) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.http_endpoint)
        run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
        run.log(0, {"a": 1.0})
        until(lambda: receiver.seen > 2)
        assert not run._exporter.spool.refused()
        broken.clear()
        until(lambda: (run.id, "a", 0) in got.points)
        run.finish()
    assert "check address, port, path" in capfd.readouterr().err


@pytest.mark.parametrize("status", [202, 204])
def test_other_successes_are_successes(tmp_path, monkeypatch, status):
    with otlp.serve(fault=lambda n: status) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.http_endpoint)
        run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
        run.log(0, {"a": 1.0})
        run.finish()
        assert receiver.seen <= 3
    assert not list((tmp_path / "n/metrics/spool").iterdir())


def test_refused_batches_are_counted_and_tried_again(tmp_path, monkeypatch):
    got, broken = Collected(), threading.Event()
    broken.set()
    with otlp.serve(got, fault=lambda n: 413 if broken.is_set() else None) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.http_endpoint)
        run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
        for step in range(3):
            run.log(step, {"a": 1.0})
            until(lambda n=step: len(run._exporter.spool.refused()) > n)
        row = LocalSource(tmp_path).runs()[0]
        assert row["refused"] >= 3
        problems = [f.fact for f in doctor.examine(tmp_path, {}) if f.level == "problem"]
        assert any("refused" in fact for fact in problems)
        broken.clear()
        run._exporter.sender._refused_due = 0.0  # ten minutes later
        run._exporter.sender.wake.set()
        until(lambda: not run._exporter.spool.refused())
        assert all((run.id, "a", step) in got.points for step in range(3))
        run.finish()
    assert LocalSource(tmp_path).runs()[0]["refused"] == 0


def test_names_of_refused_batches_never_collide(tmp_path):
    spool = Spool(tmp_path / "spool", 0, 1 << 30)
    for n in range(30):
        spool.append(b"m", str(n).encode())
    for _ in range(30):
        assert spool.peek() is not None
        spool.set_aside()
    assert [p.read_bytes()[1:] for p in spool.refused()] == [str(n).encode() for n in range(30)]
    spool.close()


def test_refused_batches_are_bounded_like_the_spool(tmp_path):
    spool = Spool(tmp_path / "spool", 0, 1000)
    for n in range(30):
        spool.append(b"m", b"%03d" % n + b"x" * 97)
        assert spool.peek() is not None
        spool.set_aside()
    kept = [path.read_bytes()[1:4] for path in spool.refused()]
    assert kept == [b"%03d" % n for n in range(21, 30)] and spool.dropped_files == 21
    spool.close()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_receiver_that_never_answers_hangs_no_exit(tmp_path, protocol):
    """It accepts connections and is silent; the values are in the folder, and the exit comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = os.environ | {
            ENDPOINT: f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        code = "import gaia_metrics, sys; run = gaia_metrics.init('p', 'n', dir=sys.argv[1])\n"
        code += "for step in range(2000): run.log(step, {'a': 1.0})"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "n")], env=env, timeout=120,
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0 and "not sent yet" in done.stderr
    assert len((tmp_path / "n/metrics.jsonl").read_text().splitlines()) == 2000
    assert json.loads((tmp_path / "n/status.json").read_text())["unsent_bytes"] > 0


def test_requests_are_cut_by_bytes():
    """12 MB of texts in a second, 30,000 long names in one step, and many histograms."""
    sent = []
    builder = Builder({"gaia.run.id": "202611-a"}, lambda signal, data: sent.append((signal, data)))
    for n in range(300):
        builder.record({"kind": "text", "name": "s", "text": "x" * 40_000, "step": n, "time_ns": n})
    builder.values(0, 1, {f"{i:0230d}": 1.0 for i in range(30_000)}, False)
    histogram = {"kind": "histogram", "name": "h" * 200, "step": 1, "time_ns": 1, "count": 1,
                 "sum": 1.0, "min": 1.0, "max": 1.0, "scale": 1, "zero_count": 0,
                 "positive": (0, [1] * 80), "negative": (0, [])}  # fmt: skip
    for _ in range(10_000):
        builder.record(histogram)
    builder.flush()
    assert max(len(data) for _, data in sent) < MAX_BYTES + 100_000
    logs = points = buckets = 0
    for signal, data in sent:
        message = otlp.MESSAGES["/v1/metrics" if signal == b"m" else "/v1/logs"]()
        message.ParseFromString(data)
        rows: otlp.Rows = {}
        if signal == b"m":
            otlp.metric_rows(message.resource_metrics[0], rows)
            points += len(rows.get("otel_metrics_gauge", ()))
            buckets += len(rows.get("otel_metrics_exp_histogram", ()))
        else:
            otlp.log_rows(message.resource_logs[0], rows)
            logs += len(rows["otel_logs"])
    assert (logs, points, buckets) == (300, 30_000, 10_000)


@pytest.mark.parametrize("no_proxy", ["", "localhost"])
def test_proxies_are_obeyed(tmp_path, no_proxy):
    """HTTP_PROXY takes the requests, with its password, unless NO_PROXY names the host."""
    seen = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, self.headers.get("proxy-authorization")))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    code = """
import gaia_metrics, sys
run = gaia_metrics.init("p", "n", dir=sys.argv[1], system_interval=0)
run.log(0, {"a": 1.0})
run.finish()
"""
    with otlp.serve() as receiver:
        env = os.environ | {
            ENDPOINT: receiver.http_endpoint, "no_proxy": no_proxy,
            "http_proxy": f"http://me:p%40ss@127.0.0.1:{proxy.server_port}",
        }  # fmt: skip
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "n")], env=env, check=True)
        reached = receiver.requests
    proxy.shutdown()
    proxy.server_close()
    if no_proxy:
        assert reached and not seen
    else:
        assert not reached and seen[0][0] == f"{receiver.http_endpoint}/v1/metrics"
        assert seen[0][1] == "Basic bWU6cEBzcw=="

"""OTLP: the bytes, the transports, the spool, what is delivered under faults."""

import json
import math
import os
import random
import struct
import subprocess
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb

import gaia_metrics
from gaia_metrics.recording import histogram
from gaia_metrics.sending import wire
from gaia_metrics.sending.builder import Builder
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.spool import Spool
from gaia_metrics.sending.sync import sync
from gaia_metrics.sending.transport import connect
from gaia_metrics.storage import crc32c
from tests.fakes import otlp


@pytest.fixture
def export_env(monkeypatch):
    def use(endpoint, protocol="http/protobuf", **more):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        for name, value in more.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)

    return use


class Collected:
    """Points by (run, metric, process, step), as the database keeps them: the latest attempt."""

    def __init__(self):
        self.points, self.logs, self.infos, self.system, self.arrivals = {}, [], [], [], 0

    def __call__(self, rows):
        for row in rows.get("otel_metrics_gauge", ()):
            resource, attributes = row["ResourceAttributes"], row["Attributes"]
            attempt = int(resource["gaia.run.attempt"])
            if row["MetricName"] == "gaia.run.info":
                self.infos.append(attributes)
            elif "step" in attributes:
                self.arrivals += 1
                key = (resource["gaia.run.id"], row["MetricName"], int(attributes["step"]))
                if self.points.get(key, (0, 0))[0] <= attempt:
                    self.points[key] = (attempt, row["Value"])
            else:
                self.system.append(row["MetricName"])
        self.logs += rows.get("otel_logs", ())


@pytest.mark.parametrize("data", [b"", b"123456789", bytes(range(256)) * 3])
def test_crc32c_agrees_with_the_library_and_the_standard(data):
    assert crc32c.crc32c_python(b"123456789") == 0xE3069283  # RFC 3720, the check value
    assert crc32c.crc32c_python(data) == crc32c.load()(data)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.floats()), max_size=20),
    st.dictionaries(st.text(max_size=9), st.one_of(st.text(max_size=9), st.integers(-9, 2**40))),
    st.text(min_size=1, max_size=9),
)
def test_metrics_requests_are_what_protobuf_reads(points, resource, name):
    out = []
    builder = Builder(resource, lambda signal, request: out.append(request))
    for step, value in points:
        builder.values(step, 10**18 + 7, {name: value}, False)
    builder.flush()
    got = metrics_pb.ExportMetricsServiceRequest()
    got.ParseFromString(b"".join(out))
    read = [
        (p.attributes[0].value.int_value, p.as_double, p.time_unix_nano, p.attributes[0].key)
        for r in got.resource_metrics
        for m in r.scope_metrics[0].metrics
        for p in m.gauge.data_points
    ]
    bits = [(s, struct.pack("<d", v), 10**18 + 7, "step") for s, v in points]
    assert [(s, struct.pack("<d", v), t, k) for s, v, t, k in read] == bits
    if points:
        attributes = got.resource_metrics[0].resource.attributes
        assert otlp.attributes(attributes) == {k: str(v) for k, v in resource.items()}


def test_histograms_and_logs_are_what_protobuf_reads():
    values = np.concatenate([[0.0, 0.0, np.nan], np.geomspace(1e-6, 10, 500), [-3.0, -1e-9]])
    record = histogram.summarize(values)
    plain = histogram.summarize(values.tolist())  # the way without numpy
    assert math.isclose(plain.pop("sum"), record["sum"])
    assert plain == {k: v for k, v in record.items() if k != "sum"}
    got = metrics_pb.ExportMetricsServiceRequest()
    got.ParseFromString(
        wire.metrics_request({}, [wire.exponential_histogram("w", 7, 10**18, record)])
    )
    point = got.resource_metrics[0].scope_metrics[0].metrics[0].exponential_histogram.data_points[0]
    assert point.count == 504 and point.zero_count == 2 and record["nonfinite"] == 1
    assert point.count == sum(point.positive.bucket_counts) + 2 + sum(point.negative.bucket_counts)
    base = 2.0 ** (2.0**-point.scale)
    low = base**point.positive.offset
    high = base ** (point.positive.offset + len(point.positive.bucket_counts))
    assert low < 1e-6 * 1.0001 and high >= 10 and (point.min, point.max) == (-3.0, 10.0)
    assert math.isclose(point.sum, float(np.nansum(values)))
    logs = logs_pb.ExportLogsServiceRequest()
    logs.ParseFromString(
        wire.logs_request({"a": 1}, [wire.log_record(5, 13, "e", "größe", {"step": 3})])
    )
    row = logs.resource_logs[0].scope_logs[0].log_records[0]
    assert (row.body.string_value, row.severity_number, row.event_name) == ("größe", 13, "e")
    assert row.attributes[0].value.int_value == 3 and row.time_unix_nano == 5


def until(condition):
    """Wait for it, however slow the machine is."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_run_arrives_whole(tmp_path, export_env, protocol, compression):
    got = Collected()
    with otlp.serve(got, token="s3cret") as receiver:
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
        export_env(
            endpoint, protocol, HEADERS="authorization=Bearer%20s3cret", COMPRESSION=compression
        )
        run = gaia_metrics.init(
            "gchat", "d12", {"model": {"depth": 12}, "hf_token": "hidden!"}, dir=tmp_path / "run",
            system_interval=0.5,
        )  # fmt: skip
        for step in range(500):
            run.log(step, {"train/loss": 5.0 / (step + 1), "train/lr": 1e-3})
        run.text(499, "samples", "Once upon a time")
        run.histogram(499, "weights", np.ones(10))
        run.alert("look", "at this", "error")
        until(lambda: "process.memory.usage" in got.system)
        run.finish()
        sync(tmp_path / "run", os.environ)  # what a slow machine has not sent by now
    assert len(got.points) == 1000
    assert got.points[run.id, "train/loss", 4] == (1, 1.0)
    assert {row["LogAttributes"]["gaia.kind"] for row in got.logs} == {"text", "alert"}
    assert got.infos[-1]["gaia.run.status"] == "finished"
    assert got.infos[-1]["config.model.depth"] == "12"
    assert got.infos[-1]["config.hf_token"] == "(hidden)"
    assert "process.memory.usage" in got.system
    assert not list((tmp_path / "run/metrics/spool").iterdir())
    if protocol == "http/protobuf":
        assert receiver.encodings == {"gzip" if compression == "gzip" else "identity"}


def test_wrong_token_and_unreachable_warn_once_and_keep(tmp_path, export_env, capfd):
    with otlp.serve(token="right") as receiver:
        export_env(receiver.http_endpoint, HEADERS="authorization=Bearer%20wr0ng")
        run = gaia_metrics.init("p", "n", dir=tmp_path / "a", system_interval=0)
        run.log(0, {"a": 1.0})
        until(lambda: run._exporter.sender.failing)
        run.finish()
        assert receiver.requests == 0
    err = capfd.readouterr().err
    assert err.count("check the token in OTEL_EXPORTER_OTLP_HEADERS") == 1
    assert "wr0ng" not in err and "gaia-metrics sync" in err
    assert list((tmp_path / "a/metrics/spool").iterdir())
    export_env("http://localhost:9")
    run = gaia_metrics.init("p", "n", dir=tmp_path / "b", system_interval=0)
    run.log(0, {"a": 1.0})
    until(lambda: run._exporter.sender.failing)
    run.finish()
    assert capfd.readouterr().err.count("did not take metrics") == 1
    export_env("http://localhost:9", PROTOCOL="carrier-pigeon")
    gaia_metrics.init("p", "n", dir=tmp_path / "c", system_interval=0).finish()
    assert "carrier-pigeon" in capfd.readouterr().err


def make_certificate(folder):
    """A self-signed certificate for localhost, by openssl."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key),
         "-out", str(cert)],
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return key, cert


def test_tls_and_a_refused_certificate(tmp_path, export_env):
    import ssl

    import grpc

    key, cert = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    request = wire.metrics_request({}, [])
    with otlp.serve(credentials=credentials, ssl_context=context) as receiver:
        for protocol in ("grpc", "http/protobuf"):
            endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
            base = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_EXPORTER_OTLP_TIMEOUT": "60000",
            }
            trusted = connect(
                ExportSettings.from_env(base | {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(cert)})
            )
            assert trusted.send(b"m", request).kind == "ok"
            trusted.close()
            plain = connect(ExportSettings.from_env(base))
            outcome = plain.send(b"m", request)
            assert outcome.kind == "denied" and "certificate" in outcome.detail
            plain.close()


def test_settings_follow_the_specification():
    read = ExportSettings.from_env
    assert read({}) is None
    assert read({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}) is None
    http = read({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4318/"})
    assert http.endpoints == {b"m": "https://c:4318/v1/metrics", b"l": "https://c:4318/v1/logs"}
    own = read(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "https://m/x",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1, Authorization=Bearer%20tok%3D",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        }
    )
    assert own.endpoints[b"m"] == "https://m/x" and own.timeout_s == 2.5
    assert own.headers == {"a": "1", "authorization": "Bearer tok="}
    assert "tok=" not in repr(own)
    with pytest.raises(gaia_metrics.MetricsError, match="HEADERS"):
        read({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "s3cret"})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["append", "ack", "reopen", "tear"]), max_size=40), st.integers())
def test_spool_gives_back_every_request_in_order(tmp_path_factory, moves, seed):
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, 0, 1 << 30)
    source, expected, count = random.Random(seed), [], 0
    for move in moves:
        if move == "append":
            data = b"%d" % count + source.randbytes(source.choice([0, 10, 3 << 20]))
            spool.append(b"m", data)
            expected.append(data)
            count += 1
        elif move == "ack" and spool.peek() is not None:
            assert spool.peek() == (b"m", expected[0])
            spool.acknowledge()
            expected.pop(0)
        elif move in ("reopen", "tear"):
            spool.close()
            pending = list(expected)
            if move == "tear" and (files := sorted(folder.glob("*.otlp"))):
                with open(files[-1], "ab") as file:
                    file.write(b"\x99\0\0\0torn")
            spool = Spool(folder, 0, 1 << 30)
            # What was acknowledged in a file that is not done comes again: at least once.
            again = []
            while (frame := spool.peek()) is not None:
                again.append(frame[1])
                spool.acknowledge()
            assert again[len(again) - len(pending) :] == pending
            expected = []
    spool.close()


def test_spool_limit_drops_the_oldest_and_says_so(tmp_path):
    spool = Spool(tmp_path, 0, limit_bytes=5 << 20)
    for i in range(4):
        spool.append(b"m", bytes([i]) * (2 << 20))
    assert spool.dropped_files == 2
    assert spool.peek()[1][0] == 2


def test_a_refused_batch_is_set_aside(tmp_path, export_env, capfd):
    got = Collected()
    with otlp.serve(got, fault=lambda n: 400 if n == 1 else None) as receiver:
        export_env(receiver.http_endpoint)
        run = gaia_metrics.init("p", "n", dir=tmp_path / "run", system_interval=0)
        run.log(0, {"a": 1.0})
        until(lambda: list((tmp_path / "run/metrics/spool").glob("rejected-*")))
        run.log(1, {"a": 2.0})
        run.finish()
        sync(tmp_path / "run", os.environ)
    assert {(run.id, "a", 0), (run.id, "a", 1)} <= set(got.points)  # `sync` tried it again
    assert not list((tmp_path / "run/metrics/spool").glob("rejected-*"))
    assert "refuses a batch" in capfd.readouterr().err


def test_faults_lose_nothing(tmp_path, export_env):
    """Small member of the million-point test in test_nothing_lost.py."""
    got, faults = Collected(), random.Random(7)
    options = [None, None, 500, 503, "reset"]
    with otlp.serve(got, fault=lambda n: faults.choice(options) if n < 12 else None) as receiver:
        export_env(receiver.http_endpoint)
        run = gaia_metrics.init("p", "n", dir=tmp_path / "run", system_interval=0)
        for step in range(2000):
            run.log(step, {f"m{i}": float(step + i) for i in range(20)})
        until(lambda: len(got.points) == 40_000)
        run.finish()
    assert len(got.points) == 40_000
    assert all(v == (1, float(s + int(m[1:]))) for (_, m, s), v in got.points.items())


def test_status_says_what_is_unsent(tmp_path, export_env):
    export_env("http://localhost:9")
    run = gaia_metrics.init("p", "n", dir=tmp_path / "run", system_interval=0)
    run.log(0, {"a": 1.0})
    until(lambda: run._exporter.sender.failing)
    run.finish("crashed")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "crashed" and status["unsent_bytes"] > 0
    assert "refused" in status["sending"].lower()

"""Sending through a proxy by CONNECT: TLS ends at the receiver, NO_PROXY is obeyed."""

import json
import os
import ssl
import subprocess
import sys

import pytest

from tests.fakes import otlp, proxy
from tests.gaia_metrics.test_export import Collected, make_certificate

RUN = """
import gaia_metrics, sys
run = gaia_metrics.init("p", "n", dir=sys.argv[1], system_interval=0)
for step in range(50):
    run.log(step, {"loss": 1.0})
run.text(1, "samples", "a text that nobody on the way reads")
run.finish()
"""
WAYS = ["http/protobuf", pytest.param("grpc", marks=pytest.mark.slow)]


@pytest.fixture
def receiver(tmp_path):
    import grpc

    key, cert = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    got = Collected()
    with otlp.serve(got, credentials=credentials, ssl_context=context, token="t0ken") as receiver:
        receiver.got, receiver.certificate = got, cert
        yield receiver


def environment(receiver, protocol, address, no_proxy=""):
    https = protocol != "grpc"
    endpoint = receiver.http_endpoint if https else receiver.grpc_endpoint
    return os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(receiver.certificate),
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20t0ken",
        # gRPC's own library reads the small names only.
        "https_proxy": address, "no_proxy": no_proxy, "http_proxy": "http://127.0.0.1:9",
    }  # fmt: skip


def record(folder, env):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)], env=env, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def all_arrived(receiver, folder):
    run_id = json.loads((folder / "run.json").read_text())["id"]
    return all((run_id, "loss", step) in receiver.got.points for step in range(50))


@pytest.mark.parametrize("protocol", WAYS)
def test_a_tunnel_to_a_receiver_with_tls(receiver, tmp_path, protocol):
    with proxy.serve() as way:
        env = environment(receiver, protocol, f"http://me:p%40ss@127.0.0.1:{way.port}")
        record(tmp_path / "n", env)
        assert all_arrived(receiver, tmp_path / "n")
        port = env["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2]
        assert set(way.targets) == {f"localhost:{port}"} and not way.refused
        assert len(way.wire) > 1000
        for secret in (b"t0ken", b"nobody on the way", b"loss"):
            assert secret not in way.wire


@pytest.mark.parametrize(("protocol", "no_proxy"), [
    ("http/protobuf", "localhost"),
    pytest.param("http/protobuf", "*", marks=pytest.mark.slow),
    pytest.param("grpc", "localhost", marks=pytest.mark.slow),  # its library knows no asterisk
])  # fmt: skip
def test_no_proxy_goes_straight(receiver, tmp_path, protocol, no_proxy):
    with proxy.serve() as way:
        address = f"http://me:p%40ss@127.0.0.1:{way.port}"
        record(tmp_path / "n", environment(receiver, protocol, address, no_proxy))
        assert all_arrived(receiver, tmp_path / "n")
        assert not way.targets and not way.wire


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("trouble", ["wrong password", "nobody there", "cut"])
def test_a_proxy_that_does_not_let_through_loses_nothing(receiver, tmp_path, protocol, trouble):
    with proxy.serve() as way:
        if trouble == "cut":
            way.cut.set()
        user = "me:wrong" if trouble == "wrong password" else "me:p%40ss"
        port = 9 if trouble == "nobody there" else way.port
        env = environment(receiver, protocol, f"http://{user}@127.0.0.1:{port}")
        said = record(tmp_path / "n", env)
        assert "not sent yet" in said and "wrong" not in said and "p%40ss" not in said
        status = json.loads((tmp_path / "n/status.json").read_text())
        assert status["unsent_bytes"] > 0 and status["sending"] != "ok"
        if (protocol, trouble) == ("http/protobuf", "wrong password"):
            assert "407" in status["sending"]
        assert not receiver.got.points
        way.cut.clear()
        address = f"http://me:p%40ss@127.0.0.1:{way.port}"
        env = environment(receiver, protocol, address)
        code = "import os, sys; from pathlib import Path; from gaia_metrics.sending.sync import "
        code += "sync; sync(Path(sys.argv[1]), os.environ)"
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "n")], env=env, check=True, timeout=120
        )
        assert all_arrived(receiver, tmp_path / "n") and way.targets

"""Notices reach people over real HTTP and SMTP; a dead address neither stops nor leaks anything."""

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import gaia_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hooks():
    """A web server that keeps what is posted: (path, JSON)."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


@pytest.fixture
def mails():
    """An SMTP server (RFC 5321, as far as smtplib speaks it): keeps the messages."""
    got = []

    class Session(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 test\r\n")
            while line := self.rfile.readline().strip():
                word = line.split()[0].upper()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = []
                    while (text := self.rfile.readline()) != b".\r\n":
                        lines.append(text)
                    got.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", got
    server.shutdown()
    server.server_close()


def test_alerts_and_the_end_reach_every_address(tmp_path, monkeypatch, hooks, mails):
    (web, posted), (smtp, sent) = hooks, mails
    monkeypatch.setenv("GAIA_NOTIFY", f"{web}/hook slack+{web}/slack mailto:me@example.org")
    monkeypatch.setenv("GAIA_SMTP", smtp)
    run = gaia_metrics.init("gchat", "d12", dir=tmp_path / "d12", system_interval=0)
    run.log(7, {"train/loss": float("nan")})
    run.alert("quiet", "only an info", "info")
    run.finish("crashed")
    plain = [body for path, body in posted if path == "/hook"]
    assert [(n["event"], n["level"], n["title"]) for n in plain] == [
        ("alert", "error", "not a number"), ("end", "error", "run crashed"),
    ]  # fmt: skip
    assert plain[0]["run"] == run.id and plain[0]["step"] == 7
    slack = [body["text"] for path, body in posted if path == "/slack"]
    assert slack[0].startswith("[error] d12: not a number\ntrain/loss=nan at step 7")
    assert len(slack) == len(sent) == 2
    assert "Subject: [error] d12: run crashed" in sent[1] and "last step 7" in sent[1]


def test_a_preempted_run_tells_of_it(tmp_path, hooks):
    web, posted = hooks
    code = """
import gaia_metrics, sys, time
run = gaia_metrics.init("p", "n", dir=sys.argv[1], system_interval=0)
run.log(3, {"a": 1.0})
run.wait_durable(3)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "n")], cwd=ROOT, stdout=subprocess.PIPE,
        env=os.environ | {"GAIA_NOTIFY": f"{web}/x"},
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    ((_, notice),) = posted
    assert notice["title"] == "run stopped (SIGTERM or preemption)" and notice["step"] == 3


def test_a_dead_address_is_told_once_without_its_secret(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("GAIA_NOTIFY", "http://127.0.0.1:9/s3cret")
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
    for n in range(3):
        run.alert(f"a{n}", "x", "error")
    run.finish()
    said = capfd.readouterr().err
    assert said.count("could not be sent to address 1") == 1 and "s3cret" not in said


@pytest.mark.parametrize("address", [
    "ftp://x/s3cret", "s3cret", "http:///s3cret", "mailto:a@b", "https://[s3cret",
    "slack+https://[s3cret", "https://x:s3cret/y",
])  # fmt: skip
def test_addresses_that_cannot_work_are_one_line(tmp_path, monkeypatch, capfd, address):
    monkeypatch.setenv("GAIA_NOTIFY", address)
    gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0).finish()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "GAIA_NOTIFY" in said[0] and "s3cret" not in said[0]


def test_a_loop_of_alerts_floods_nobody(tmp_path, monkeypatch, hooks):
    web, posted = hooks
    monkeypatch.setenv("GAIA_NOTIFY", f"{web}/x")
    run = gaia_metrics.init("p", "n", dir=tmp_path / "n", system_interval=0)
    for n in range(200):
        run.alert("again", str(n), "warn")
    run.finish()
    assert len(posted) == 51 and posted[-1][1]["event"] == "end"

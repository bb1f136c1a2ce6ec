"""`sync` sends what no receiver has acknowledged: all of that, once, whatever else is refused."""

import shutil

import pytest

import gaia_metrics
from gaia_metrics.sending import sender, spool
from gaia_metrics.sending import sync as syncing
from gaia_metrics.sending.outcome import Outcome
from gaia_metrics.sending.spool import Spool
from tests.fakes import otlp
from tests.gaia_metrics.test_export import Collected

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def record(folder, steps=5, process=0):
    run = gaia_metrics.init("p", "n", dir=folder, system_interval=0, process_index=process)
    for step in range(steps):
        run.log(step, {"x": 1.0})
    run.finish()


def test_what_was_spooled_on_a_machine_that_went_is_sent_from_the_segments(tmp_path, monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    record(tmp_path / "n")
    shutil.rmtree(tmp_path / "n/metrics/spool")  # a mirror has the segments alone
    got = Collected()
    with otlp.serve(got) as receiver:
        (report,) = syncing.sync(tmp_path, {ENDPOINT: receiver.http_endpoint})
        assert report.points == 5 and sum(key[1] == "x" for key in got.points) == 5
        (again,) = syncing.sync(tmp_path, {ENDPOINT: receiver.http_endpoint})
        assert (again.requests, again.points) == (0, 0)


def test_what_a_receiver_took_while_recording_is_sent_no_second_time(tmp_path, monkeypatch):
    with otlp.serve(Collected()) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.http_endpoint)
        record(tmp_path / "n")
        env = {ENDPOINT: receiver.http_endpoint}
        assert [r.requests for r in syncing.sync(tmp_path, env)] == [0]
        record(tmp_path / "n", steps=2)  # another attempt
        assert [r.requests for r in syncing.sync(tmp_path, env)] == [0]
        assert syncing.sync(tmp_path, env, everything=True)[0].requests > 0


class Picky:
    """A receiver that refuses some bytes for good, as a collector does with HTTP 400."""

    def __init__(self, refuses):
        self.refuses, self.taken = refuses, []

    def send(self, signal, request):
        if self.refuses(request):
            return Outcome("rejected", "HTTP 400")
        self.taken.append(request)
        return Outcome("ok")

    def close(self):
        """Nothing to close."""


@pytest.fixture
def picky(monkeypatch):
    made = Picky(lambda request: request.startswith(b"POISON"))
    monkeypatch.setattr(syncing, "connect", lambda settings: made)
    return made


def test_one_refused_batch_is_set_aside_and_stops_nothing(tmp_path, picky):
    for name in ("a", "b"):
        record(tmp_path / name)
    waiting = Spool(tmp_path / "a/metrics/spool", 0, 1 << 30)
    for request in (b"POISON", b"good"):
        waiting.append(b"m", request)
    waiting.close()
    a, b = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert (a.refused, a.points, b.refused, b.points) == (1, 5, 0, 5)
    assert b"good" in picky.taken
    (aside,) = spool.refused(tmp_path / "a/metrics/spool")
    assert spool.read_refused(aside) == (b"m", b"POISON")
    a, b = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert (a.refused, a.requests, b.requests) == (1, 0, 0)
    picky.refuses = lambda request: False
    assert syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})[0].refused == 0
    assert not spool.refused(tmp_path / "a/metrics/spool")


def test_a_segment_of_which_a_batch_is_refused_is_sent_again(tmp_path, picky):
    record(tmp_path / "a")
    picky.refuses = lambda request: b"gaia.run.info" in request
    assert syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})[0].refused == 1
    picky.refuses = lambda request: False
    (report,) = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert (report.refused, report.points) == (0, 5)


def test_the_sender_tries_each_refused_batch_again(tmp_path, monkeypatch):
    waiting = Spool(tmp_path, 0, 1 << 30)
    for request in (b"POISON", b"mended"):
        waiting.append(b"m", request)
        waiting.peek()
        waiting.set_aside()
    monkeypatch.setattr(sender.Sender, "_run", lambda self: None)  # the test calls it itself
    receiver = Picky(lambda request: request == b"POISON")
    sender.Sender(waiting, None, print)._retry_refused(receiver)
    waiting.close()
    assert receiver.taken == [b"mended"] and len(spool.refused(tmp_path)) == 1


def test_another_process_is_sent_with_its_own_host_and_pid(tmp_path, picky, monkeypatch):
    record(tmp_path / "a")
    monkeypatch.setattr("os.uname", lambda: type("Name", (), {"nodename": "the-second-host"}))
    record(tmp_path / "a", process=1)
    syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert [b"the-second-host" in request for request in picky.taken] == [False, True]

"""`sync` sends what no receiver has acknowledged: all of that, once, whatever else is refused."""

import shutil

import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

import gaia_metrics
from gaia_metrics.sending import sender, spool
from gaia_metrics.sending import sync as syncing
from gaia_metrics.sending.http import HttpTransport
from gaia_metrics.sending.outcome import Outcome, accepted
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.spool import Spool
from gaia_metrics.storage import segments
from tests.fakes import otlp
from tests.gaia_metrics.test_export import Collected

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
METRICS = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"


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
    """A receiver that refuses some bytes for good, as a collector does with HTTP 400.

    `leaves` points of a request are left out of what it takes.
    """

    def __init__(self, refuses):
        self.refuses, self.taken, self.leaves = refuses, [], 0

    def send(self, signal, request):
        if self.leaves:
            answer = metrics_service_pb2.ExportMetricsServiceResponse()
            answer.partial_success.rejected_data_points = self.leaves
            return accepted(answer.SerializeToString())
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


def test_points_that_a_receiver_leaves_out_have_not_arrived(tmp_path, picky):
    record(tmp_path / "a")
    picky.leaves = 3
    for _ in range(2):  # not sent again of itself, but by whoever calls sync again
        (report,) = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
        assert (report.left_out, report.points, report.requests) == (3, 0, 0)
        with pytest.raises(gaia_metrics.MetricsError, match="left out 3 points"):
            syncing.check([report])
    picky.leaves = 0
    (report,) = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert (report.left_out, report.points) == (0, 5)
    syncing.check([report])


def test_a_run_whose_points_were_left_out_does_not_count_as_arrived(tmp_path, picky, monkeypatch):
    monkeypatch.setattr(sender, "connect", lambda settings: picky)
    monkeypatch.setenv(ENDPOINT, "http://x:4318")
    picky.leaves = 3
    record(tmp_path / "a")
    assert not list((tmp_path / "a/metrics/spool").iterdir())  # it is not sent again of itself
    picky.leaves = 0
    (report,) = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert report.points == 5


def test_spooled_texts_without_an_endpoint_hold_no_metrics_back(tmp_path, monkeypatch):
    waiting = Spool(tmp_path, 0, 1 << 30)
    waiting.append(b"l", b"a text")  # of an attempt that had an endpoint for both
    waiting.append(b"m", b"metrics")
    warned, arrived = [], []
    settings = ExportSettings.from_env({METRICS: "http://127.0.0.1:9/v1/metrics"})
    transport = HttpTransport(settings)
    send = transport.send

    def take(signal, request):
        if signal == b"m":
            arrived.append(request)
            return Outcome("ok")
        return send(signal, request)

    monkeypatch.setattr(transport, "send", take)
    monkeypatch.setattr(sender, "connect", lambda settings: transport)
    sending = sender.Sender(waiting, settings, lambda *words: warned.append(words))
    assert sending.stop(10.0)
    waiting.close()
    assert arrived == [b"metrics"] and len(spool.refused(tmp_path)) == 1
    assert [key for key, *_ in warned] == ["rejected"]


@pytest.mark.parametrize("content", [
    "{}", "{", '{"id": 5}', '{"id": "20261129-x"}', '{"id": "20261129-x", "attempts": [{}]}',
])  # fmt: skip
def test_a_damaged_run_holds_no_other_one_up(tmp_path, picky, content):
    for name in ("a", "b"):
        record(tmp_path / name)
    (tmp_path / "a/run.json").write_text(content)
    a, b = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert a.skipped.startswith("damaged: ") and a.points == 0
    assert (b.skipped, b.points) == ("", 5)
    with pytest.raises(gaia_metrics.MetricsError, match="1 runs are damaged"):
        syncing.check([a, b])


@pytest.mark.parametrize("lost", ["metrics", "header"])
def test_a_run_without_its_metrics_holds_no_other_one_up(tmp_path, picky, lost):
    for name in ("a", "b"):
        record(tmp_path / name)
    (segment,) = segments.paths(tmp_path / "a/metrics")
    segment.write_bytes(segment.read_bytes().replace(b'"run_id"', b'"rum_id"'))
    if lost == "metrics":
        shutil.rmtree(tmp_path / "a/metrics")
    a, b = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
    assert (a.damaged, a.points, b.damaged, b.points) == (True, 0, False, 5)


def test_a_segment_with_a_damaged_place_is_sent_and_said(tmp_path, picky):
    record(tmp_path / "a")
    (segment,) = segments.paths(tmp_path / "a/metrics")
    data = bytearray(segment.read_bytes())
    data[len(data) - 60] ^= 1
    segment.write_bytes(data)
    for _ in range(2):
        (report,) = syncing.sync(tmp_path, {ENDPOINT: "http://x:4318"})
        assert report.damaged and 0 < report.points < 5


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


def test_a_process_that_still_records_keeps_its_spool(tmp_path, monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    folder, got = tmp_path / "n", Collected()
    runs = [
        gaia_metrics.init(
            "p", "n", dir=folder, run_id="20261130-n", process_index=process, system_interval=0
        )
        for process in (0, 1)
    ]
    for run in runs:
        run.log(0, {f"x{run._process}": 1.0})
        assert run.wait_durable(0)
    runs[0].finish()
    before = spool.paths(folder / "metrics/spool")
    assert {path.name[:3] for path in before} == {"p0-", "p1-"}
    with otlp.serve(got) as receiver:
        env = {ENDPOINT: receiver.http_endpoint}
        (report,) = syncing.sync(tmp_path, env)
        assert report.skipped.startswith("it is being recorded") and not got.points
        assert spool.paths(folder / "metrics/spool") == before
        runs[1].finish()
        (report,) = syncing.sync(tmp_path, env)
    assert not report.skipped and {key[1] for key in got.points} == {"x0", "x1"}

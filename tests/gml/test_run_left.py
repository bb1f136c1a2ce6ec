"""Machines that `gml run` leaves up when it fails, and those that it deletes."""

from __future__ import annotations

import subprocess

import pytest

from gml.errors import Unavailable
from gml.run import Console, Preempted, Runner, RunRequest
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import machines, request


class Run:
    """A `gml run` on a machine of the fake cloud; its ssh is played here."""

    def __init__(self, monkeypatch, **options) -> None:
        self.fleet, self.said = make_fleet(), []
        options = {"job": "j", "command": "x", **options}
        console = Console(say=self.said.append)
        self.runner = Runner(self.fleet, RunRequest(**options), console)
        self.names: list[str] | None = None  # jobs on the machine; None: it does not answer
        monkeypatch.setattr(self.runner, "prepare", lambda node: None)
        monkeypatch.setattr("gml.run.jobs.start", lambda *a, **k: True)
        monkeypatch.setattr(self.fleet.ssh, "run", self._ssh)

    def _ssh(self, node, script, **_):
        if self.names is None:
            raise Unavailable(f"ssh {node.id}: timed out")
        lines = "".join(f"{name}/run.sh\n" for name in self.names)
        return subprocess.CompletedProcess([], 0, lines.encode(), b"")

    def fails_with(self, monkeypatch, *errors) -> None:
        left = list(errors)

        def finish(node, job, keep):
            raise left.pop(0)

        monkeypatch.setattr(self.runner, "finish", finish)
        with pytest.raises(type(errors[-1])):
            self.runner.run(None, request("node"))


LOST = Unavailable("x stopped answering", "reattach with `gml logs -f x`")


def test_a_machine_that_does_not_answer_keeps_its_job(server, monkeypatch):
    run = Run(monkeypatch)
    run.fails_with(monkeypatch, LOST)
    assert len(machines(server.cloud)) == 1
    (line,) = run.said
    assert (
        "x is left up; the machine ends by itself in" in line and "and is billed $21.60/h" in line
    )
    assert "gml run --attach x" in line and "gml node delete x" in line


@pytest.mark.parametrize("jobs, left", [(["j"], 1), ([], 0)])
def test_only_a_clear_no_deletes(server, monkeypatch, jobs, left):
    run = Run(monkeypatch)
    run.names = jobs
    run.fails_with(monkeypatch, LOST)
    assert len(machines(server.cloud)) == left


def test_before_the_start_of_a_job_a_silent_machine_is_deleted(server, monkeypatch):
    run = Run(monkeypatch)

    def prepare(node):
        raise LOST

    monkeypatch.setattr(run.runner, "prepare", prepare)
    with pytest.raises(Unavailable):
        run.runner.run(None, request("node"))
    assert machines(server.cloud) == []


def test_a_machine_that_the_cloud_calls_gone_is_deleted(server, monkeypatch):
    run = Run(monkeypatch)
    gone = Preempted("x is preempted")
    gone.gone = True
    run.fails_with(monkeypatch, gone)
    assert machines(server.cloud) == []


def test_the_job_of_a_recovery_is_known_by_its_own_name(server, monkeypatch):
    run = Run(monkeypatch, recover=True)
    run.names = ["j-r1"]
    run.fails_with(monkeypatch, Preempted("x was preempted"), LOST)
    assert len(machines(server.cloud)) == 1
    assert "is left up" in run.said[-1]


def test_a_machine_deleted_for_a_recovery_is_not_called_left_up(server, monkeypatch):
    run = Run(monkeypatch, recover=True)

    monkeypatch.setattr("gml.run.create", _create_once())
    run.fails_with(monkeypatch, Preempted("x was preempted"), Unavailable("unused"))
    assert machines(server.cloud) == [] and not any("left up" in line for line in run.said)


def _create_once():
    from gml.errors import StockOut
    from gml.nodes.create import create

    calls = []

    def once(*words, **more):
        calls.append(1)
        if len(calls) > 1:
            raise StockOut("no capacity")
        return create(*words, **more)

    return once

"""The teardown proof, third part: neither output nor disk is needed to undo a create.

At every API call of every create path a real process loses what it writes to: the reader of its
pipes goes away (`… 2>&1 | tee log` and Ctrl-C, a closed terminal, `| head -1`), or every write to
every file fails (RLIMIT_FSIZE 0, set from outside: state, log and redirected output alike). Nothing
may be left then, without any reaper.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from gml.reaper import reap
from tests.fakes.cloud import Call
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import LAMBDA, PATHS, fresh, machines, some, words


@pytest.fixture(autouse=True)
def _lambda_key(server, fast_lambda):
    return None


def child() -> int:
    return int((Path(os.environ["GML_HOME"]) / "child.pid").read_text())


class Pipe:
    """A FIFO as the child's stdout and stderr, and its reader, which can go away."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "out.fifo"
        os.mkfifo(self.path)
        self.reader: int | None = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        if self.reader is not None:
            os.close(self.reader)
            self.reader = None


def lose_reader(pipe: Pipe) -> None:
    pipe.close()


def ctrl_c(pipe: Pipe) -> None:
    pipe.close()
    os.kill(child(), signal.SIGINT)


def hang_up(pipe: Pipe) -> None:
    pipe.close()
    os.kill(child(), signal.SIGHUP)


def full_disk(pipe: Pipe) -> None:
    resource.prlimit(child(), resource.RLIMIT_FSIZE, (0, 0))


def full_disk_and_ctrl_c(pipe: Pipe) -> None:
    full_disk(pipe)
    os.kill(child(), signal.SIGINT)


LOSSES = [
    ctrl_c,
    lose_reader,
    full_disk,
    pytest.param(full_disk_and_ctrl_c, marks=pytest.mark.slow),
    pytest.param(hang_up, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("path", some(*set(PATHS) - {"gce"}))
def test_what_cannot_be_written_is_undone_all_the_same(path, lose, server, zygote, tmp_path):
    number, finished = 0, False
    while not finished:
        cloud = fresh(server, path)
        folder = tmp_path / str(number)
        folder.mkdir()
        pipe = Pipe(folder)
        lost: list[int] = []

        def fault(call: Call, n=number, pipe=pipe, lost=lost) -> None:
            if call.number == n:
                lost.append(n)
                lose(pipe)

        cloud.faults = fault
        piped = lose not in (full_disk, full_disk_and_ctrl_c)
        code = zygote.run(words(path), LAMBDA, out=pipe.path if piped else None)
        pipe.close()
        cloud.faults = lambda call: None
        cloud.drain()
        if lost:
            assert code not in (0, 99, -9), (path, number, code)
            assert cloud.billable() == [], (path, number, code)
        finished = not lost
        number += 1
    assert number > 3


def test_an_id_that_nobody_could_read_is_no_machine(server, zygote):
    """`gml node create … | true`: the pipe is closed before the id is printed."""
    cloud = fresh(server, "node")
    read, write = os.pipe()
    os.close(read)
    code = zygote.run(words("node"), out=Path(f"/proc/{os.getpid()}/fd/{write}"))
    os.close(write)
    cloud.drain()
    assert code != 0 and cloud.billable() == []


def test_reap_ends_at_once_what_a_killed_create_left(server, zygote):
    """Its record says that it was begun, and nobody holds its lock: no deadline is waited for."""
    cloud = fresh(server, "node")

    def fault(call: Call):
        if call.method == "POST":
            return ("hook", lambda: os.kill(child(), signal.SIGKILL), "after")
        return None

    cloud.faults = fault
    assert zygote.run(words("node")) == -9
    cloud.faults = lambda call: None
    cloud.drain()
    assert len(machines(cloud)) == 1
    with make_fleet().store.lock("x"):
        assert reap(make_fleet()).deleted == []
    report = reap(make_fleet())
    assert [(n.id, n.note) for n in report.deleted] == [("x", "its create was interrupted")]
    cloud.drain()
    assert cloud.billable() == [] and make_fleet().store.all() == []


@pytest.mark.parametrize("command", ["delete", "reap"])
def test_deleting_needs_no_disk(command, server, zygote):
    """Every write fails from the first API call on; the machine goes all the same."""
    cloud = fresh(server, "gce")
    assert zygote.run(words("gce")) == 0
    if command == "reap":
        record = Path(os.environ["GML_HOME"]) / "nodes" / "x.json"
        raw = json.loads(record.read_text())
        record.write_text(json.dumps({**raw, "phase": "intent"}))
    cloud.faults = lambda call: resource.prlimit(child(), resource.RLIMIT_FSIZE, (0, 0)) and None
    zygote.run(["node", "delete", "x"] if command == "delete" else ["reap"])
    cloud.faults = lambda call: None
    cloud.drain()
    assert cloud.billable() == []

"""`gml supervise --loop`, pass after pass: one key for all of them, and no outage ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gml.cli import supervise
from gml.cli.entry import run
from gml.nodes.create import create
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import machines, request


class Enough(BaseException):
    """The loop was seen for as long as the test needs it."""


@pytest.fixture
def passes(server, home, monkeypatch):
    """Runs `gml supervise` in this process until so many passes are over; gives their fleets."""
    with (home / "config.toml").open("a") as file:
        file.write('\n[supervisor]\nstate = "gs://here/p"\n')
    fleets = []

    def reap(fleet, **options):
        fleets.append(fleet)
        return real(fleet, **options)

    real = supervise.reap
    monkeypatch.setattr(supervise, "reap", reap)

    def play(count: int) -> list:
        def sleep(seconds: float) -> None:
            assert seconds == 60
            if len(fleets) == count:
                raise Enough

        monkeypatch.setattr(supervise, "time", SimpleNamespace(sleep=sleep))
        with pytest.raises(Enough):
            run(["supervise", "--loop", "1m"])
        return fleets

    play.fleets = fleets
    return play


def test_each_pass_has_the_key_of_the_environment(passes, home, monkeypatch):
    monkeypatch.setenv("GML_SSH_KEY", "a key")
    assert [f.config.ssh_key for f in passes(3)] == [str(home / "supervisor_key")] * 3
    assert (home / "supervisor_key").read_text() == "a key\n"


def test_an_outage_of_the_storage_ends_a_pass_and_not_the_loop(passes, cloud, capsys, monkeypatch):
    cloud.faults = lambda call: (
        ("status", 503) if "/b/" in call.path and len(passes.fleets) == 1 else None
    )
    monkeypatch.setattr(supervise, "beat", _once_refused(supervise.beat))
    passes(3)
    said = capsys.readouterr().err
    assert "the queues could not be read" in said and "503" in said and "No space" in said
    assert said.rstrip().endswith("0 reaped, 0 queues"), said


def _once_refused(beat):
    """A heartbeat that the disk has no room for, the first time."""
    calls = []

    def refused(*given):
        calls.append(given)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        beat(*given)

    return refused


def test_one_pass_without_a_loop_still_fails_with_the_services_code(server, home, cloud):
    with (home / "config.toml").open("a") as file:
        file.write('\n[supervisor]\nstate = "gs://here/p"\n')
    cloud.faults = lambda call: ("status", 503) if "/b/" in call.path else None
    assert run(["supervise"]) == 8


@pytest.mark.parametrize("nobody", ["full", "gone"])
def test_what_is_overdue_is_reaped_where_nobody_can_be_told_so(server, home, nobody):
    fleet = make_fleet()
    node = create(fleet, request("node"))
    fleet.store.put(node.replace(deadline=node.created - 60))
    for name, raw in server.cloud.resources.items():
        if "/nodes/" in name:
            raw["labels"]["gml-deadline"] = str(node.created - 60)
    read, write = os.pipe()
    os.close(read)
    if nobody == "full":
        os.close(write)
        write = os.open("/dev/full", os.O_WRONLY)
    words = [sys.executable, "-m", "gml", "supervise"]
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=write, timeout=60, check=False)
    os.close(write)
    assert machines(server.cloud) == []

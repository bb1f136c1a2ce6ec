"""The teardown proof, first half: kill -9 before and after every API call of every create path.

The calls are enumerated by the run itself: a real process is killed at call 0, 1, 2, … until one
run is no longer killed. After each, a rerun under the same name makes exactly one machine, and
`gml reap` past the deadline, without any local state, leaves nothing billable.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fakes.gml_paths import (
    HOSTS,
    LAMBDA,
    fresh,
    machines,
    reap_after_deadline,
    some,
    words,
)


@pytest.fixture(autouse=True)
def _lambda_key(server, fast_lambda):
    return None


def kill_child(when: str):
    def action() -> None:
        pid = int((Path(os.environ["GML_HOME"]) / "child.pid").read_text())
        os.kill(pid, signal.SIGKILL)

    return ("hook", action, when)


def log() -> str:
    return (Path(os.environ["GML_HOME"]) / "child.err").read_text()[-3000:]


@pytest.mark.parametrize(
    "path",
    some("node-failover", "queued-slice", "flex", "flex-failover", "gce-failover", "gce-slice"),
)
def test_kill_9_between_all_api_calls(path, server, zygote):
    cloud = fresh(server, path)
    assert zygote.run(words(path), LAMBDA) == 0, log()
    assert len(machines(cloud)) == HOSTS.get(path, 1)
    assert len(cloud.log) >= 3
    number, finished = 0, False
    while not finished:
        for when in ("before", "after"):
            cloud = fresh(server, path)
            fault = kill_child(when)
            cloud.faults = lambda call, n=number, f=fault: f if call.number == n else None
            code = zygote.run(words(path), LAMBDA)
            # How often it polls differs from run to run; one that was not killed is the end.
            assert code == -9 or (code == 0 and number >= 3), (number, log())
            finished = finished or code == 0
            # A rerun under the same name must not make a second one.
            if when == "after":
                cloud.faults = lambda call: None
                assert zygote.run(words(path), LAMBDA) in (0, 2), (number, log())
                assert len(machines(cloud)) == HOSTS.get(path, 1), number
            reap_after_deadline(cloud)
            assert cloud.billable() == [], (path, number, when)
            assert cloud.violations == []
        number += 1

"""The teardown proof: whatever kills or breaks a create, after `gml reap` nothing billable is left.

Kill -9 is in test_teardown_kill.py; here every single call of each path is broken in every way,
everything goes down from any call on, capacity ends after acceptance, and clocks jump.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from gml.errors import GmlError
from gml.planning import Wish
from gml.reaper import reap
from tests.fakes.cloud import Cloud
from tests.fakes.gml_kit import make_manager
from tests.fakes.google import preempt

LAMBDA = {"REQUEST_GAP_S": 0.0, "LAUNCH_GAP_S": 0.01, "LIST_LAG_S": 0.12}
# name: (options, zones without capacity)
PATHS = {
    "node": ("-t v6e-8 -p google --strategy node --zone us-east5-b", ()),
    "node-failover": ("-t v6e-8 -p google --strategy node --zone us-east5", ("us-east5-b",)),
    "queued-slice": ("-t v6e-16 -p google --strategy queued --spot --zone us-east5-b", ()),
    "flex": ("-t v6e-8 -p google --strategy flex --zone us-east5-a", ()),
    "flex-failover": ("-t v6e-8 -p google --strategy flex --zone us-east5", ("us-east5-b",)),
    "gce": ("-t v6e-8 -p google --strategy gce --spot --zone us-east5-b", ()),
    "gce-failover": ("-t v6e-8 -p google --strategy gce --zone us-east5", ("us-east5-b",)),
    "gce-slice": ("-t v6e-16 -p google --strategy gce --zone us-east5-b", ()),
    "lambda": ("-t gpu_1x_gh200 -p lambda --unsafe", ()),
}
HOSTS = {"gce-slice": 4}  # a slice of the TPU API is one node with several addresses


def some(*slow: str) -> list:
    """All paths, those named only in the slow suite."""
    return [pytest.param(p, marks=pytest.mark.slow if p in slow else ()) for p in PATHS]


def words(path: str) -> list[str]:
    return ["node", "create", *PATHS[path][0].split(), "--timeout", "1h", "--name", "x", "--no-ssh"]


def fresh(server, path: str) -> Cloud:
    cloud = server.reset(Cloud(op_delay=0.005, list_lag=0.05))
    cloud.stockout = set(PATHS[path][1])
    for name in ("nodes", "locks"):
        folder = Path(os.environ["GML_HOME"]) / name
        for file in folder.glob("*"):
            file.unlink()
    return cloud


def machines(cloud: Cloud) -> list[str]:
    cloud.settle()
    return [
        n
        for n, r in cloud.resources.items()
        if "/nodes/" in n or "/instances/" in n or n.startswith("lambda/")
    ]


def reap_after_deadline(cloud: Cloud, hours: float = 3) -> None:
    """What any machine without local state does once the deadline has passed."""
    cloud.faults = lambda call: None
    cloud.drain()
    time.sleep(cloud.list_lag)
    cloud.offset = hours * 3600
    for file in (Path(os.environ["GML_HOME"]) / "nodes").glob("*"):
        file.unlink()
    report = reap(make_manager(cloud.now))
    assert report.problems == []
    cloud.drain()


def kill_child(when: str):
    def action() -> None:
        pid = int((Path(os.environ["GML_HOME"]) / "child.pid").read_text())
        os.kill(pid, signal.SIGKILL)

    return ("hook", action, when)


@pytest.fixture(autouse=True)
def _lambda_key(server, fast_lambda):
    return None


@pytest.mark.parametrize(
    "path", some("node-failover", "queued-slice", "flex-failover", "gce-failover")
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


def log() -> str:
    return (Path(os.environ["GML_HOME"]) / "child.err").read_text()[-3000:]


def wish(path: str, **more) -> Wish:
    options = PATHS[path][0].split()
    value = {
        o: options[i + 1]
        for i, o in enumerate(options)
        if o.startswith("-") and i + 1 < len(options)
    }
    return Wish(
        instance_type=value["-t"],
        provider=value["-p"],
        timeout_s=3600,
        name="x",
        zone=value.get("--zone", ""),
        strategy=value.get("--strategy", "auto"),
        spot="--spot" in options,
        unsafe=True,
        wait_ssh=False,
        **more,
    )


FAULTS = [
    ("drop", "before"),
    ("drop", "after"),
    ("status", 503),
    pytest.param(("status", 429), marks=pytest.mark.slow),
    pytest.param(("status", 500), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("path", some("node-failover", "flex-failover", "gce-failover"))
def test_one_broken_call_heals_or_leaves_nothing(path, fault, server):
    cloud = fresh(server, path)
    make_manager().create(wish(path))
    total = len(cloud.log)
    for number in range(total):
        cloud = fresh(server, path)
        cloud.faults = lambda call, n=number: fault if call.number == n else None
        try:
            make_manager().create(wish(path))
            assert len(machines(cloud)) == HOSTS.get(path, 1), number
        except GmlError:
            # Given up: then it has cleaned up by itself, with no reaper.
            cloud.drain()
            assert cloud.billable() == [], number
        reap_after_deadline(cloud)
        assert cloud.billable() == [], number


@pytest.mark.parametrize("path", some(*set(PATHS) - {"node", "gce-slice", "lambda"}))
def test_an_outage_from_any_call_on(path, server):
    cloud = fresh(server, path)
    make_manager().create(wish(path))
    total = len(cloud.log)
    for number in range(total):
        cloud = fresh(server, path)
        cloud.faults = lambda call, n=number: ("status", 503) if call.number >= n else None
        # How often it polls differs from run to run, so the last calls may not come.
        with contextlib.suppress(GmlError):
            make_manager().create(wish(path))
        reap_after_deadline(cloud)
        assert cloud.billable() == [], number


@pytest.mark.parametrize("path", ["node", "queued-slice", "flex", "gce", "gce-slice", "lambda"])
def test_stockout_after_acceptance_everywhere_leaves_nothing(path, server):
    cloud = fresh(server, path)
    cloud.stockout = {"us-east5-a", "us-east5-b", "us-east-3"}
    manager = make_manager()
    manager.provider("google").patience_s = 0.3
    with pytest.raises(GmlError) as error:
        manager.create(wish(path))
    assert error.value.code in (6, 8)
    cloud.drain()
    assert cloud.billable() == []
    assert manager.store.all() == []


@pytest.mark.parametrize("path", ["node", "queued-slice", "gce"])
def test_preempted_machines_are_reaped_before_their_deadline(path, server):
    cloud = fresh(server, path)
    make_manager().create(wish(path))
    time.sleep(cloud.list_lag)
    for name in machines(cloud):
        preempt(cloud, name)
    assert cloud.billable() != []
    report = reap(make_manager())
    assert [n.id for n in report.deleted] == ["x"]
    cloud.drain()
    assert cloud.billable() == []


@pytest.mark.parametrize("path", ["node", "gce", "lambda"])
def test_before_the_deadline_nothing_is_reaped_whatever_our_clock_says(path, server):
    cloud = fresh(server, path)
    node = make_manager().create(wish(path))
    time.sleep(cloud.list_lag)
    report = reap(make_manager(lambda: node.deadline - 5))
    assert (report.deleted, [n.id for n in report.kept]) == ([], ["x"])
    # A clock that jumped back can only keep it longer; one that is right again deletes it.
    assert reap(make_manager(lambda: node.created - 86400)).deleted == []
    assert [n.id for n in reap(make_manager(lambda: node.deadline + 1)).deleted] == ["x"]


@pytest.mark.parametrize("path", ["flex", "gce", "gce-slice"])
def test_google_itself_ends_it_without_any_reaper(path, server):
    cloud = fresh(server, path)
    node = make_manager().create(wish(path))
    assert node.limit is not None and abs(node.limit - node.deadline) <= 3700
    cloud.enforce_limits = True
    cloud.offset = 2 * 3600 + 120
    left = [n for n in cloud.billable() if "/nodes/" in n or "/instances/" in n or "/disks/" in n]
    assert left == []


def test_a_limit_missing_from_the_answer_fails_the_create(server):
    for path in ("flex", "gce"):
        cloud = fresh(server, path)
        cloud.forget_limit = True
        with pytest.raises(GmlError, match="no time limit"):
            make_manager().create(wish(path))
        cloud.drain()
        assert cloud.billable() == []


@pytest.mark.parametrize("path", ["node", "flex", "gce-slice", "lambda"])
def test_ctrl_c_at_any_call_leaves_nothing(path, server):
    cloud = fresh(server, path)
    make_manager().create(wish(path))
    total = len(cloud.log)
    for number in range(1, total):
        cloud = fresh(server, path)
        manager, once = make_manager(), []

        def interrupt(what: str, cloud=cloud, number=number, once=once) -> None:
            if len(cloud.log) >= number and not once:
                once.append(what)
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            manager.create(wish(path), interrupt)
            continue
        cloud.drain()
        assert cloud.billable() == [], number
        assert manager.store.all() == []

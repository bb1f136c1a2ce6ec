"""The teardown proof: whatever kills or breaks a create, after `gml reap` nothing billable is left.

Kill -9 is in test_teardown_kill.py; here every single call of each path is broken in every way,
everything goes down from any call on, capacity ends after acceptance, and clocks jump.
"""

from __future__ import annotations

import contextlib
import time

import pytest

from gml.errors import GmlError
from gml.nodes.create import create
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import (
    HOSTS,
    PATHS,
    fresh,
    machines,
    reap_after_deadline,
    request,
    some,
)
from tests.fakes.google import preempt


@pytest.fixture(autouse=True)
def _lambda_key(server, fast_lambda):
    return None


FAULTS = [
    ("drop", "after"),
    pytest.param(("drop", "before"), marks=pytest.mark.slow),
    pytest.param(("status", 503), marks=pytest.mark.slow),
    pytest.param(("status", 429), marks=pytest.mark.slow),
    pytest.param(("status", 500), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "path", some("node-failover", "flex-failover", "gce-failover", "gce-slice")
)
def test_one_broken_call_heals(path, fault, server):
    cloud = fresh(server, path)
    create(make_fleet(), request(path))
    total = len(cloud.log)
    for number in range(total):
        cloud = fresh(server, path)
        cloud.faults = lambda call, n=number: fault if call.number == n else None
        create(make_fleet(), request(path))
        assert len(machines(cloud)) == HOSTS.get(path, 1), number
        reap_after_deadline(cloud)
        assert cloud.billable() == [], number


@pytest.mark.parametrize("path", some(*set(PATHS) - {"node", "gce", "lambda"}))
def test_an_outage_from_any_call_on(path, server):
    cloud = fresh(server, path)
    create(make_fleet(), request(path))
    total = len(cloud.log)
    for number in range(total):
        cloud = fresh(server, path)
        cloud.faults = lambda call, n=number: ("status", 503) if call.number >= n else None
        # How often it polls differs from run to run, so the last calls may not come.
        with contextlib.suppress(GmlError):
            create(make_fleet(), request(path))
        reap_after_deadline(cloud)
        assert cloud.billable() == [], number


@pytest.mark.parametrize("path", ["node", "queued-slice", "flex", "gce", "gce-slice", "lambda"])
def test_stockout_after_acceptance_everywhere_leaves_nothing(path, server):
    cloud = fresh(server, path)
    cloud.stockout = {"us-east5-a", "us-east5-b", "us-east-3"}
    fleet = make_fleet()
    fleet.provider("google").session.patience_s = 0.3
    with pytest.raises(GmlError) as error:
        create(fleet, request(path))
    assert error.value.code in (6, 8)
    cloud.drain()
    assert cloud.billable() == []
    assert fleet.store.all() == []


@pytest.mark.parametrize("path", ["node", "queued-slice", "gce"])
def test_preempted_machines_are_reaped_before_their_deadline(path, server):
    cloud = fresh(server, path)
    create(make_fleet(), request(path))
    time.sleep(cloud.list_lag)
    for name in machines(cloud):
        preempt(cloud, name)
    assert cloud.billable() != []
    report = reap(make_fleet())
    assert [n.id for n in report.deleted] == ["x"]
    cloud.drain()
    assert cloud.billable() == []


@pytest.mark.parametrize("path", ["node", "gce", "lambda"])
def test_before_the_deadline_nothing_is_reaped_whatever_our_clock_says(path, server):
    cloud = fresh(server, path)
    node = create(make_fleet(), request(path))
    time.sleep(cloud.list_lag)
    report = reap(make_fleet(lambda: node.deadline - 5))
    assert (report.deleted, [n.id for n in report.kept]) == ([], ["x"])
    # A clock that jumped back can only keep it longer; one that is right again deletes it.
    assert reap(make_fleet(lambda: node.created - 86400)).deleted == []
    assert [n.id for n in reap(make_fleet(lambda: node.deadline + 1)).deleted] == ["x"]


@pytest.mark.parametrize("path", ["flex", "gce", "gce-slice"])
def test_google_itself_ends_it_without_any_reaper(path, server):
    cloud = fresh(server, path)
    node = create(make_fleet(), request(path))
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
            create(make_fleet(), request(path))
        cloud.drain()
        assert cloud.billable() == []


@pytest.mark.parametrize("path", ["node", "flex", "gce-slice", "lambda"])
def test_ctrl_c_at_any_call_leaves_nothing(path, server):
    cloud = fresh(server, path)
    create(make_fleet(), request(path))
    total = len(cloud.log)
    for number in range(1, total):
        cloud = fresh(server, path)
        fleet, once = make_fleet(), []

        def interrupt(what: str, cloud=cloud, number=number, once=once) -> None:
            if len(cloud.log) >= number and not once:
                once.append(what)
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            create(fleet, request(path), interrupt)
            continue
        cloud.drain()
        assert cloud.billable() == [], number
        assert fleet.store.all() == []

"""`gml node extend`: the end moves from where it is, for clusters too, or not at all."""

from __future__ import annotations

import json

import pytest

from gml.errors import NotFound
from gml.nodes import change
from gml.nodes.create import create
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import request

HOUR = 3600
CLUSTER = ("cluster", "create", "cl", "-t", "v6e-16", "--timeout", "3h", "--zone", "us-east5-b")


@pytest.fixture
def quiet(monkeypatch):
    """Without the machines' own watchdogs, which need ssh."""
    monkeypatch.setattr(change, "_tell_watchdogs", lambda *words: None)


def end_of(node_id: str = "x") -> int:
    (live,) = [n for n in make_fleet().provider("google").list_nodes() if n.id == node_id]
    return live.deadline


def test_the_end_of_a_cluster_moves(server, gml):
    assert gml(*CLUSTER).returncode == 0
    before = end_of("cl")
    (planned,) = json.loads(gml("node", "extend", "cl", "10h", "--dry-run").stdout)["requests"]
    assert planned["url"].endswith("/clusters/gml-cl:setResourceLabels")
    assert end_of("cl") == before
    done = gml("node", "extend", "cl", "10h")
    assert done.returncode == 0, done.stderr
    assert end_of("cl") == make_fleet().store.get("cl").deadline == before + 10 * HOUR
    server.cloud.offset = 4 * HOUR
    assert reap(make_fleet(server.cloud.now)).deleted == []


def test_what_another_computer_added_is_not_taken_back(server, quiet):
    fleet = make_fleet()
    node = create(fleet, request("node"))
    change.extend(fleet, node, by=10 * HOUR)
    moved = change.extend(fleet, node, by=HOUR)  # by the record of before, as elsewhere
    assert node.deadline is not None
    assert end_of() == moved.deadline == node.deadline + 11 * HOUR
    assert fleet.store.get("x").deadline == moved.deadline


def test_a_machine_that_has_no_end_any_more_is_not_given_one_by_an_old_record(server, gml, quiet):
    fleet = make_fleet()
    node = create(fleet, request("node"))
    change.extend(fleet, node, None)
    fleet.store.put(node)
    for more in ((), ("--dry-run",)):
        done = gml("node", "extend", "x", "1h", *more)
        assert (done.returncode, "has no end to extend" in done.stderr) == (2, True), done.stderr
    assert end_of() is None


def test_a_machine_that_is_gone_is_said_so_also_by_a_dry_run(server, gml):
    create(make_fleet(), request("node"))
    server.cloud.resources.clear()
    for more in ((), ("--dry-run",)):
        done = gml("node", "extend", "x", "1h", *more)
        assert (done.returncode, "x is gone" in done.stderr) == (NotFound.code, True), done.stderr


def test_nothing_is_said_to_have_moved_where_nothing_can(server, gml):
    fleet = make_fleet()
    node = create(fleet, request("queued-slice"))
    cloud = server.cloud
    cloud.resources = {n: r for n, r in cloud.resources.items() if "/queuedResources/" in n}
    done = gml("node", "extend", "x", "1h")
    assert done.returncode == 2 and "x has no machine whose end could move" in done.stderr
    assert fleet.store.get("x").deadline == node.deadline

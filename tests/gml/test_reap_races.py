"""`gml reap` beside a create that ends during its pass, or under another configuration."""

from __future__ import annotations

import pytest

from gml.errors import Busy
from gml.nodes.create import create
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import machines, request


def _begun(fleet, node):
    """The record as it is while its create is still under way."""
    return fleet.store.put(node.replace(phase="intent", state=""))


def test_a_machine_whose_create_ends_during_the_pass_stays(server):
    fleet, cloud = make_fleet(), server.cloud
    node = create(fleet, request("node"))
    _begun(fleet, node)

    def ends(call):
        # The records of the pass are read by now: its lists are being asked.
        if call.service == "container":
            fleet.store.put(node)

    cloud.faults = ends
    report = reap(make_fleet())
    assert report.deleted == [] and [n.id for n in report.kept] == ["x"]
    assert len(machines(cloud)) == 1 and fleet.store.get("x").phase == "up"


def test_nobody_takes_over_what_is_being_reaped(server):
    fleet, cloud = make_fleet(), server.cloud
    _begun(fleet, create(fleet, request("node")))
    refused = []

    def takes_over(call):
        if call.method == "DELETE":
            with pytest.raises(Busy), fleet.store.lock("x"):
                pass
            refused.append(call.path)

    cloud.faults = takes_over
    report = reap(make_fleet())
    assert [n.note for n in report.deleted] == ["its create was interrupted"] and refused
    assert machines(cloud) == [] and fleet.store.get("x") is None


def _another_project(cloud, monkeypatch):
    """Makes a project current that the user may see too, and in which nothing is."""

    def empty(call):
        if "projects/other-project/" not in call.path:
            return None
        if call.method == "GET" and "/gml-" in call.path:
            return ("answer", 404, {"error": {"code": 404, "message": "not found"}})
        return ("answer", 200, {})

    cloud.faults = empty
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "other-project")


@pytest.mark.parametrize("path", ["node", "gce"])
def test_a_machine_in_another_project_is_neither_lost_nor_forgotten(server, monkeypatch, path):
    cloud = server.cloud
    create(make_fleet(cloud.now), request(path))
    before = machines(cloud)
    _another_project(cloud, monkeypatch)
    cloud.offset = 1500
    (shown,) = make_fleet(cloud.now).list_live().nodes
    assert (shown.id, shown.note, shown.state) == ("x", "", "ready")
    report = reap(make_fleet(cloud.now))
    assert (report.forgotten, report.problems) == ([], []) and machines(cloud) == before
    assert [n.id for n in report.kept] == ["x"]
    cloud.offset = 2 * 3600
    report = reap(make_fleet(cloud.now))
    assert [(n.id, n.note) for n in report.deleted] == [("x", "past its deadline")]
    assert machines(cloud) == [] and make_fleet().store.all() == []


def test_a_project_that_cannot_be_looked_at_any_more_is_said(server, monkeypatch):
    cloud = server.cloud
    create(make_fleet(cloud.now), request("node"))
    _another_project(cloud, monkeypatch)
    empty = cloud.faults
    text = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "denied"}}
    cloud.faults = lambda call: (
        ("answer", 403, text) if "projects/proj-123/" in call.path else empty(call)
    )
    cloud.offset = 1500
    report = reap(make_fleet(cloud.now))
    listing = make_fleet(cloud.now).list_live()
    assert [n.note for n in listing.nodes] == [""] and listing.problems != []
    assert report.forgotten == [] and any(line.startswith("x: ") for line in report.problems)
    assert make_fleet().store.get("x") is not None

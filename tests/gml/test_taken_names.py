"""A name that is taken: no create, undo or reap touches a machine that it has not made."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gml.cluster import ClusterRequest
from gml.cluster import create as create_cluster
from gml.errors import UsageError
from gml.nodes.change import delete
from gml.nodes.create import create
from gml.progress import silent
from gml.reaper import reap
from gml.store import Store
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import fresh, request, some


@pytest.fixture(autouse=True)
def _lambda_key(server, fast_lambda):
    return None


def another_laptop() -> None:
    """Goes on without any record of what was made so far."""
    for file in (Path(os.environ["GML_HOME"]) / "nodes").glob("*"):
        file.unlink()


def listed(cloud) -> None:
    """Waits until lists show what was made: they lag."""
    cloud.drain()
    time.sleep(2 * cloud.list_lag)


def in_an_hour() -> float:
    return time.time() + 3600


@pytest.mark.parametrize("path", some("node-failover", "flex-failover", "gce-failover"))
def test_another_owners_machine_outlives_a_create_of_its_name(path, server, monkeypatch):
    cloud = fresh(server, path)
    monkeypatch.setenv("GML_OWNER", "bob")
    create(make_fleet(), request(path))
    listed(cloud)
    before = cloud.billable()
    another_laptop()
    monkeypatch.setenv("GML_OWNER", "ada")
    with pytest.raises(UsageError, match="another owner's"):
        create(make_fleet(), request(path))
    cloud.drain()
    assert cloud.billable() == before != []
    assert make_fleet().store.all() == []


@pytest.mark.parametrize("path", some("node-failover", "flex-failover", "gce-failover"))
def test_ones_own_machine_of_another_laptop_is_not_adopted(path, server):
    cloud = fresh(server, path)
    create(make_fleet(), request(path))
    listed(cloud)
    before = cloud.billable()
    another_laptop()
    cloud.offset = 60
    with pytest.raises(UsageError, match="exists already"):
        create(make_fleet(cloud.now), request(path))
    cloud.drain()
    assert cloud.billable() == before != []


def test_a_cluster_of_another_owner_or_laptop_is_not_taken(cloud, monkeypatch):
    wanted = ClusterRequest("v6e-16", 7200, "us-east5-b", name="shared")
    monkeypatch.setenv("GML_OWNER", "bob")
    create_cluster(make_fleet(), wanted, silent)
    before = cloud.billable()
    for owner, said in (("ada", "another owner's"), ("bob", "exists already")):
        another_laptop()
        monkeypatch.setenv("GML_OWNER", owner)
        cloud.offset += 60
        with pytest.raises(UsageError, match=said):
            create_cluster(make_fleet(cloud.now), wanted, silent)
        cloud.drain()
        assert cloud.billable() == before != []


def test_a_cluster_that_a_killed_create_left_is_taken_over(cloud):
    wanted = ClusterRequest("v6e-16", 7200, "us-east5-b", name="c1")
    made = create_cluster(make_fleet(), wanted, silent)
    store = Store(Path(os.environ["GML_HOME"]))
    store.put(store.get("c1").replace(phase="intent"))
    cloud.offset = 60
    again = create_cluster(make_fleet(cloud.now), wanted, silent)
    assert (again.created, again.deadline) == (made.created, made.deadline)


@pytest.mark.parametrize("path", ["node", "lambda"])
def test_a_stale_record_deletes_nothing_of_the_next_owner(path, server, monkeypatch):
    cloud = fresh(server, path)
    monkeypatch.setenv("GML_OWNER", "ada")
    stale = create(make_fleet(), request(path))
    delete(make_fleet(), stale)
    monkeypatch.setenv("GML_OWNER", "bob")
    create(make_fleet(), request(path))
    before = cloud.billable()
    another_laptop()
    monkeypatch.setenv("GML_OWNER", "ada")
    fleet = make_fleet()
    fleet.store.put(stale)
    delete(fleet, stale)
    # An interrupted create of Ada's is no reason to end what Bob has under that name.
    fleet.store.put(stale.replace(phase="intent"))
    reap(make_fleet(), all_owners=True)
    cloud.drain()
    assert cloud.billable() == before != []

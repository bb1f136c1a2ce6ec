"""A queue's machines and the user's own: no supervisor touches one that the user has made."""

from __future__ import annotations

import dataclasses
import time

import pytest

from gml.errors import Busy, UsageError
from gml.model import Node, node_from_labels
from gml.nodes.create import create
from gml.planning import make_spec
from gml.request import NodeRequest
from gml.supervisor import machine as machines
from gml.supervisor.machine import MachineDriver, is_own
from gml.supervisor.plan import next_step
from gml.supervisor.queue import Job, Machine, Queue, from_document, to_document
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import fresh, request

NOW = 1_800_000_000


def node(name: str, created: int = NOW, **more) -> Node:
    return Node(name, "google", "tester", "v6e-8", created=created, deadline=NOW + 9000,
                state="ready", **more)  # fmt: skip


def queue(**more) -> Queue:
    return Queue("train", "tester", NodeRequest("v6e-8", provider="google"), NOW + 9000, **more)


class Cloud:
    """A provider that shows these machines, and notes which of them it is asked to delete."""

    name = "google"

    def __init__(self, *nodes: Node) -> None:
        self.nodes, self.deleted = list(nodes), []

    def list_nodes(self) -> list[Node]:
        return self.nodes

    def find(self, node: Node) -> Node | None:
        return next((n for n in self.nodes if node.holds(n)), None)

    def ended_at(self, node: Node) -> None:
        return None

    def delete(self, node: Node, progress=None) -> None:
        self.deleted += [n for n in self.nodes if node.holds(n)]
        self.nodes = [n for n in self.nodes if not node.holds(n)]


@pytest.fixture
def see(home, monkeypatch):
    """A driver that sees these machines."""

    def see(*nodes: Node) -> tuple[MachineDriver, Cloud]:
        cloud, fleet = Cloud(*nodes), make_fleet(lambda: NOW + 60)
        monkeypatch.setattr(fleet, "provider", lambda name: cloud)
        monkeypatch.setattr(machines, "provider_for", lambda fleet, request: "google")
        return MachineDriver(fleet, None), cloud  # type: ignore[arg-type]

    return see


@pytest.mark.parametrize("state", ["empty", "made three", "removing", "asking", "waiting"])
def test_what_the_user_named_as_a_queue_names_its_own_is_not_the_queues(see, state):
    """`gml run -n 3 --name train` makes train-0, train-1 and train-2."""
    driver, _ = see(*(node(f"train-{i}") for i in range(3)))
    known = {
        "empty": queue(),
        "made three": queue(made=3, labelled="train-3", jobs=(Job("a", "x", state="done"),)),
        "removing": queue(removing=True),
        # Its own create of that name was refused: the name was taken.
        "asking": queue(made=1, labelled="train-1", machine=Machine("train-1", "creating", NOW)),
        "waiting": queue(jobs=(Job("a", "x"),)),
    }[state]
    seen = driver.observe(known)
    assert seen.machines == {}
    assert next_step(known, seen, NOW + 60).kind in ("rest", "create", "drop")


def test_a_queues_machine_is_known_by_its_label_and_the_left_ones_are_swept(see):
    driver, _ = see(node("train-1", queue="train"), node("train-2", queue="train"),
                    node("train-3"), node("train-4", queue="other"))  # fmt: skip
    up = node("train-2", queue="train")
    known = queue(made=2, labelled="train-2", machine=Machine("train-2", "up", NOW, up))
    seen = driver.observe(known)
    assert sorted(seen.machines) == ["train-1", "train-2"]
    step = next_step(known, seen, NOW + 60)
    assert (step.kind, step.ids) == ("sweep", ("train-1",))


def test_a_machine_of_an_older_gml_is_the_queues_where_its_document_records_it():
    up = queue(made=1, machine=Machine("train-1", "up", NOW, node("train-1", NOW + 5)))
    # A document of such a version, read and written by this one.
    assert from_document(to_document(up)) == up
    assert is_own(up, node("train-1", NOW + 5))
    assert not is_own(up, node("train-1", NOW + 900))  # made later: somebody else's by then
    assert not is_own(up, node("train-0", NOW + 5))
    begun = queue(made=1, machine=Machine("train-1", "creating", NOW))
    assert is_own(begun, node("train-1", NOW + 5)) and not is_own(begun, node("train-1", NOW - 5))
    assert not is_own(up, dataclasses.replace(node("train-1", NOW + 5), owner="bob"))


def test_fields_of_newer_documents_are_ignored():
    value = to_document(queue(machine=Machine("train-1", "up", NOW, node("train-1"))))
    value["machine"]["later"] = 1
    assert from_document(value).machine == Machine("train-1", "up", NOW, node("train-1"))


def test_a_drop_deletes_nothing_that_took_the_name_since(see):
    """The queue's machine is gone, and the user has made one of that name from another laptop."""
    driver, cloud = see(node("train-1", NOW + 900))
    driver.fleet.store.put(node("train-1", NOW + 900))
    for label in ("", "train"):
        gone = node("train-1", queue=label)
        known = queue(made=1, labelled="train-1" if label else "",
                      machine=Machine("train-1", "deleting", NOW, gone))  # fmt: skip
        driver.delete(known, gone)
        driver.delete_half(known)
    assert cloud.deleted == []
    assert driver.fleet.store.get("train-1") is not None
    driver, cloud = see(node("train-1", queue="train"), node("train-1", zone="other"))
    known = queue(made=1, labelled="train-1", machine=Machine("train-1", "deleting", NOW))
    driver.fleet.store.put(node("train-1", queue="train"))
    driver.delete_half(known)
    assert cloud.deleted == [node("train-1", queue="train")]


def test_no_job_is_looked_for_on_the_users_machine_of_that_name(see):
    up = node("train-1", queue="train", zone="here")
    driver, _ = see(up)
    driver.fleet.store.put(node("train-1", NOW + 900, zone="there"))
    known = queue(made=1, labelled="train-1", machine=Machine("train-1", "up", NOW, up),
                  jobs=(Job("a", "x", state="running"),))  # fmt: skip
    with pytest.raises(Busy, match="train-1 is another machine by the records here"):
        driver.observe(known)
    # A former machine of the queue's is no obstacle.
    driver.fleet.store.put(node("train-1", NOW - 900, queue="train"))
    assert driver._known(known) == driver.fleet.store.get("train-1") == up


def test_what_a_killed_create_of_the_user_left_is_not_taken_over(cloud):
    fleet = make_fleet()
    made = create(fleet, request("node"))
    fleet.store.put(made.replace(phase="intent"))
    with pytest.raises(UsageError, match="exists already"):
        create(make_fleet(), dataclasses.replace(request("node"), queue="train"))
    assert make_fleet().provider("google").find(made) is not None


@pytest.mark.parametrize("path", ["node", "gce-failover", "flex-failover", "lambda"])
def test_the_label_is_on_the_machine(path, server, fast_lambda):
    cloud = fresh(server, path)
    create(make_fleet(), dataclasses.replace(request(path), queue="train"))
    cloud.drain()
    time.sleep(2 * cloud.list_lag)  # lists lag
    provider = "lambda" if path == "lambda" else "google"
    listed = make_fleet().provider(provider).list_nodes()
    assert [n.queue for n in listed] == ["train"]
    assert make_fleet().store.all()[0].queue == "train"


def test_two_machines_of_one_name_in_two_zones_stay_two(cloud):
    """Google's names are per zone: the user's own is no part of the queue's."""
    fleet = make_fleet()
    create(fleet, dataclasses.replace(request("node"), queue="train"))
    (fleet.store.nodes / "x.json").unlink()
    spec = make_spec(fleet, request("node"))
    name = next(n for n in cloud.resources if "/nodes/" in n).replace("us-east5-b", "us-east1-d")
    cloud.put(name, {"name": name, "state": "READY", "labels": spec.labels()})
    listed = fleet.provider("google").list_nodes()
    assert sorted((n.queue, len(n.resources)) for n in listed) == [("", 1), ("train", 1)]


def test_labels_without_a_queue_are_a_users(home):
    spec = make_spec(make_fleet(), NodeRequest("local", 600, provider="local", name="x"))
    assert "gml-queue" not in spec.labels()
    own = node_from_labels(spec.labels(), provider="local", zone="", state="ready")
    assert own is not None and own.queue == ""

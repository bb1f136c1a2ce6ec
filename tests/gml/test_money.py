"""Money told right: a machine that has gone costs nothing more, in any command or the history."""

from __future__ import annotations

import json

import pytest

from gml import budget
from gml.nodes.create import create
from gml.providers.google import creation
from gml.reaper import reap
from gml.request import NodeRequest
from gml.store import Store
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import request

HOUR = 3600
CREATE = ("node", "create", "-t", "v6e-8", "-p", "google", "--timeout", "1h", "--no-ssh")


@pytest.fixture
def old(server, home):
    """A v6e-8 of three days ago that the watchdog ended at its deadline, an hour later."""
    fleet = make_fleet()
    node = create(fleet, NodeRequest("v6e-8", HOUR, provider="google", name="x", zone="us-east5-b",
                                     strategy="node", wait_ssh=False))  # fmt: skip
    server.cloud.resources.clear()
    created = node.created - 72 * HOUR
    return fleet.store.put(node.replace(created=created, deadline=created + HOUR))


def rows(done) -> dict:
    return {r["id"]: r for r in json.loads(done.stdout)["nodes"]}


def test_no_command_counts_on_after_the_end(old, gml):
    for words in (("ls", "--refresh"), ("ls", "--cached"), ("cost",)):
        assert rows(gml(*words, "--json"))["x"]["spent_usd"] == pytest.approx(21.6), words
    shown = json.loads(gml("node", "show", "x", "--json").stdout)
    assert shown["spent_usd"] == pytest.approx(21.6) and shown["note"] == "lost"


@pytest.mark.parametrize("how", ["delete", "reuse the name", "reap"])
def test_the_history_gets_the_true_end(old, gml, home, how):
    if how == "delete":
        assert "$21.60 in all" in gml("node", "delete", "x").stderr
    elif how == "reap":
        gml("reap")
    else:
        assert gml(*CREATE, "--name", "x").returncode == 0
    (entry,) = Store(home).history()
    assert entry.cost(entry.deleted) == pytest.approx(21.6)


@pytest.mark.parametrize("strategy", ["node", "gce", "queued"])
def test_the_end_is_read_from_the_service_where_it_knows_it(server, gml, home, strategy):
    """Somebody deleted it in the console, long before its deadline."""
    words = (*CREATE, "--strategy", strategy, "--zone", "us-east5-b", "--name", "y")
    assert gml(*words, "--timeout", "20h").returncode == 0
    record = Store(home).get("y")
    Store(home).put(record.replace(created=record.created - 10 * HOUR))
    server.cloud.deleted_in_console("gml-y", ago=8 * HOUR)
    assert gml("node", "delete", "y").returncode == 0
    (entry,) = Store(home).history()
    assert entry.deleted - entry.created == pytest.approx(2 * HOUR, abs=60)


def test_an_overdue_machine_that_still_runs_is_billed_on(server, gml, home):
    assert gml(*CREATE, "--strategy", "node", "--zone", "us-east5-b", "--name", "z").returncode == 0
    record = Store(home).get("z")
    earlier = record.replace(created=record.created - 3 * HOUR, deadline=record.created - 2 * HOUR)
    Store(home).put(earlier)
    for raw in server.cloud.resources.values():
        raw["labels"].update({"gml-created": str(earlier.created)})
        raw["labels"].update({"gml-deadline": str(earlier.deadline)})
    for words in (("ls", "--refresh"), ("ls", "--cached")):
        assert rows(gml(*words, "--json"))["z"]["spent_usd"] == pytest.approx(3 * 21.6, rel=0.01)


def test_an_unknown_price_is_said_as_such(server, gml):
    done = gml(*CREATE, "--zone", "us-central1-b", "--max-price", "30", "--dry-run")
    assert done.returncode == 2
    assert "the price of v6e-8 in us-central1-b is unknown" in done.stderr
    assert "leave --max-price out" in done.stderr


@pytest.mark.parametrize("path", ["queued-slice", "flex"])
def test_time_in_a_queue_costs_nothing(server, home, gml, monkeypatch, path):
    cloud, real, seen = server.cloud, creation._wait_queued, []

    def waits(*given):
        cloud.offset += 50 * 60
        cloud.settle()
        there, record = cloud.resources, home / "nodes" / "x.json"
        cloud.resources = {
            name: {**raw, "state": {"state": "WAITING_FOR_RESOURCES"}}
            for name, raw in there.items()
            if "/queuedResources/" in name
        }
        kept = record.read_text()
        record.unlink()  # as another computer sees it: by its labels alone
        listing = make_fleet(cloud.now).list_live()
        seen.extend((n.state, n.cost(cloud.now())) for n in listing.nodes)
        seen.append(budget.month(make_fleet(cloud.now), listing.nodes).spent)
        record.write_text(kept)
        cloud.resources = there
        return real(*given)

    monkeypatch.setattr(creation, "_wait_queued", waits)
    fleet = make_fleet(cloud.now)
    node = create(fleet, request(path))
    assert node.price is not None
    assert seen == [("waiting", 0.0), 0.0]
    assert node.cost(cloud.now()) == pytest.approx(0, abs=0.1)
    assert budget.month(fleet).spent == pytest.approx(0, abs=0.1)
    cloud.offset += 30 * 60
    (home / "nodes" / "x.json").unlink()
    (live,) = make_fleet(cloud.now).list_live().nodes
    assert live.cost(cloud.now()) == pytest.approx(node.price / 2, rel=0.01)
    fleet.store.put(node)
    listed = rows(gml("ls", "--refresh", "--json"))["x"]
    assert listed["spent_usd"] == pytest.approx(node.price / 2, rel=0.01)
    told = rows(gml("cost", "--json", skew=cloud.offset))["x"]  # which asks no service for the time
    assert told["spent_usd"] == pytest.approx(node.price / 2, rel=0.01)
    cloud.offset += 3 * HOUR
    reap(make_fleet(cloud.now))
    (entry,) = Store(home).history()
    assert entry.up == node.up > node.created + 49 * 60

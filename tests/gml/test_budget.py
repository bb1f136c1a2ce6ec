"""The budget of a month: it refuses, it reaps, and all machines of an owner share it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading
import time

import pytest

from gml import budget
from gml.documents import NEW, open_documents
from gml.errors import Unsafe, UsageError
from gml.model import Node
from gml.nodes import change
from gml.nodes.change import delete, extend
from gml.nodes.create import create
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import fresh, machines, request, some

NODE = ("node", "create", "-t", "v6e-8", "-p", "google", "--strategy", "gce", "--zone",
        "us-east5-b", "--no-ssh")  # fmt: skip


@pytest.fixture
def bucket(server, home):
    with (home / "config.toml").open("a") as file:
        file.write('\n[google]\nbucket = "here"\n')
    return server.cloud


def test_what_would_pass_the_budget_is_refused_before_anything_is_made(bucket, gml):
    assert gml("budget", "--month", "200USD").returncode == 0
    done = gml(*NODE, "--timeout", "48h", "--name", "big")
    assert done.returncode == 10, done.stderr
    assert "of this month's $200.00 $0.00 are spent and $0.00 bound" in done.stderr
    assert machines(bucket) == []
    assert gml(*NODE, "--timeout", "5h", "--name", "one").returncode == 0
    # What runs is bound until its deadline: two of them would pass the limit together.
    shown = json.loads(gml("budget", "--json").stdout)
    assert shown["limit_usd"] == 200 and 100 < shown["bound_usd"] < 120
    done = gml(*NODE, "--timeout", "5h", "--name", "two")
    assert done.returncode == 10 and "bound by what runs" in done.stderr
    assert gml("budget", "--none").returncode == 0
    assert gml(*NODE, "--timeout", "5h", "--name", "two").returncode == 0


def test_creates_at_the_same_time_do_not_take_the_same_dollars(bucket, monkeypatch):
    """Three of $21.60 within $30: while the first is being made, its money is bound."""
    budget.set_limit(make_fleet(), 30)
    begun, problems, lock = [], [], threading.Lock()
    check = budget.check

    def slowly(*words, **more):
        check(*words, **more)
        time.sleep(0.1)  # between the look at the money and the note of what will be made

    monkeypatch.setattr(budget, "check", slowly)

    def one(number: int) -> None:
        try:
            named = dataclasses.replace(request("gce"), name=f"p{number}", spot=False)
            begun.append(create(make_fleet(), named).id)
        except Unsafe as error:
            with lock:
                problems.append(str(error))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1 and len(machines(bucket)) == 1
    assert len(problems) == 2 and all("bound by what runs" in p for p in problems)


def test_many_machines_are_checked_together_before_any_is_made(bucket, gml):
    assert gml("budget", "--month", "30USD").returncode == 0
    done = gml("run", "-n", "3", "-t", "v6e-8", "-p", "google", "--zone", "us-east5-b",
               "--timeout", "1h", "--", "true")  # fmt: skip
    assert done.returncode == 10 and "3 machines together may cost $64.80" in done.stderr
    assert machines(bucket) == []


@pytest.mark.parametrize("path", some("node-failover", "flex-failover", "gce-failover"))
def test_every_way_to_a_machine_is_bounded(path, server, fast_lambda):
    cloud = fresh(server, path)
    fleet = make_fleet()
    budget.set_limit(fleet, 0.01)
    with pytest.raises(Unsafe, match="may cost"):
        create(fleet, request(path))
    assert cloud.billable() == [] and fleet.store.all() == []


def test_what_is_over_is_reaped(bucket):
    fleet = make_fleet()
    budget.set_limit(fleet, 200)
    create(fleet, request("gce"))
    assert reap(make_fleet()).deleted == []
    documents = open_documents(fleet.config)
    there = documents.read(budget.LIMIT)
    documents.write(budget.LIMIT, {"month_usd": 0.001}, there[1])
    bucket.offset = 600
    would = reap(make_fleet(bucket.now), dry_run=True)
    assert [n.note for n in would.deleted] == ["the month's budget of $0.00 is spent"]
    assert machines(bucket) != []
    assert [n.id for n in reap(make_fleet(bucket.now)).deleted] == ["x"]
    assert machines(bucket) == []


def test_spending_is_shared_by_all_machines_of_an_owner(bucket, home):
    fleet = make_fleet()
    budget.set_limit(fleet, 200)
    create(fleet, request("gce"))
    price = fleet.store.all()[0].price
    reap(fleet)
    (home / "nodes" / "x.json").unlink()  # another computer has no record of it
    money = budget.month(make_fleet())
    assert money.limit == 200 and money.bound > 1
    # Deleted from a third one; what it has cost stays known everywhere.
    bucket.offset = 1800
    later = make_fleet(bucket.now)
    delete(later, later.resolve("x"))
    budget.share_spending(later, [])
    (home / "history.jsonl").unlink()
    money = budget.month(make_fleet(bucket.now))
    assert money.bound == 0 and money.spent == pytest.approx(price / 2, rel=0.01)


def test_money_counts_within_the_month_and_once(home, server):
    now = datetime.datetime(2026, 11, 3, tzinfo=datetime.UTC).timestamp()
    fleet = make_fleet(lambda: now)
    start = budget.month_start(now)
    assert datetime.datetime.fromtimestamp(start, datetime.UTC).isoformat().startswith("2026-11-01")
    documents = open_documents(fleet.config)
    day = 86400
    entry = {"id": "a", "created": start - day, "price": 2.0, "seen": start + day,
             "ended": None, "deadline": round(now + 3600)}  # fmt: skip
    documents.write(budget.SPENDING, {"machines": {"a@1": entry}}, NEW)
    money = budget.month(fleet)
    # A day of it lay in October. Nobody has seen it for a day: nothing of it is to come.
    assert (money.spent, money.bound) == (48.0, 0.0)
    seen = {**entry, "seen": now}
    documents.write(budget.SPENDING, {"machines": {"a@1": seen}}, documents.read("spending")[1])
    assert budget.month(fleet).bound == 2.0


def test_an_unknown_price_can_not_be_kept_within_a_budget(home, server):
    fleet = make_fleet()
    budget.check(fleet, "it", None, 3600)  # no budget: nothing to keep
    budget.set_limit(fleet, 10)
    with pytest.raises(Unsafe, match="price of it is unknown"):
        budget.check(fleet, "it", None, 3600)
    budget.check(fleet, "own machine", 0, 10**9)


LONGER = {"extend": ("extend", "x", "20h"), "reset": ("timeout", "reset", "x", "--timeout", "20h"),
          "remove": ("timeout", "remove", "x", "--yes")}  # fmt: skip


@pytest.mark.parametrize("words", LONGER.values(), ids=LONGER)
def test_a_later_end_is_refused_as_a_create_of_that_time_would_be(bucket, gml, words):
    fleet = make_fleet()
    node = create(fleet, request("node"))  # $21.60 for its hour
    assert node.price is not None
    budget.set_limit(fleet, 1.5 * node.price)
    for more in ((), ("--dry-run",)):
        done = gml("node", *words, *more)
        assert done.returncode == 10, done.stderr
        assert "more may cost" in done.stderr and "bound by what runs" in done.stderr
    assert make_fleet().store.get("x") == node.replace(phase="up")


def test_what_ends_sooner_asks_nobody_and_what_fits_is_done(bucket, monkeypatch):
    monkeypatch.setattr(change, "_tell_watchdogs", lambda *words: None)
    fleet = make_fleet()
    node = create(fleet, request("node"))
    budget.set_limit(fleet, 40)
    bucket.faults = silent
    now = round(fleet.now())
    sooner = extend(make_fleet(), node, now + 1800)
    with pytest.raises(Unsafe, match="can't be read"):
        extend(make_fleet(), sooner, now + 3600)
    bucket.faults = lambda call: None
    assert extend(make_fleet(), sooner, now + 4800).deadline == now + 4800


def test_an_endless_machine_binds_money_to_the_end_of_the_month(home, server):
    now = datetime.datetime(2026, 12, 21, tzinfo=datetime.UTC).timestamp()
    fleet = make_fleet(lambda: now)
    budget.set_limit(fleet, 1000)
    node = Node("a", "google", "tester", "v6e-8", deadline=round(now) + 3600,
                created=round(now), price=2.0, state="ready")  # fmt: skip
    fleet.store.put(node)
    assert budget.month(fleet).bound == 2.0
    days = 11 * 24
    budget.check_longer(fleet, node, None)
    fleet.store.put(node.replace(deadline=None))
    assert budget.month(fleet).bound == 2.0 * days
    budget.check_longer(fleet, node.replace(deadline=None), round(now) + 3600)
    with pytest.raises(Unsafe, match=r"\$528.00 bound"):
        budget.check(fleet, "it", 2.0, 11 * 86400)
    budget.set_limit(fleet, 500)
    with pytest.raises(Unsafe, match=r"a for 10d23h more may cost \$526.00"):
        fleet.store.put(node)
        budget.check_longer(fleet, node, None)


@pytest.mark.parametrize("text", ["200USD", "$200", "200", " 200 usd "])
def test_amounts(text):
    assert budget.parse_money(text) == 200.0


@pytest.mark.parametrize("text", ["", "-5", "0", "200EUR", "nan", "inf"])
def test_what_is_no_amount(text):
    with pytest.raises(UsageError, match="not an amount"):
        budget.parse_money(text)


def silent(call) -> tuple[str, int] | None:
    return ("status", 503) if call.service == "storage" else None


@pytest.mark.parametrize("limit", [50, None])
def test_a_silent_bucket_allows_nothing_that_costs_money(bucket, gml, limit):
    """Whatever is remembered here: the limit may have been set or lowered elsewhere since."""
    budget.set_limit(make_fleet(), limit)
    bucket.faults = silent
    with pytest.raises(Unsafe, match=r"budget can't be read .* whether it fits"):
        budget.check(make_fleet(), "it", 0.01, 3600)
    budget.check(make_fleet(), "own machine", 0, 10**9)
    money = budget.month(make_fleet())
    assert money.limit == limit and money.problem
    done = gml("budget")
    assert "is what is known here" in done.stderr and done.returncode == 0
    assert any("budget can't be read" in p for p in reap(make_fleet(), dry_run=True).problems)


def test_unread_spending_is_not_taken_for_none(bucket):
    """The limit alone allows nothing: it is unknown then what others have spent."""
    budget.set_limit(make_fleet(), 50)
    bucket.faults = lambda call: silent(call) if "spending" in call.path else None
    with pytest.raises(Unsafe, match="can't be read"):
        budget.check(make_fleet(), "it", 0.01, 3600)


def test_each_read_refreshes_what_is_remembered_here(bucket, home):
    budget.set_limit(make_fleet(), 50)
    documents = open_documents(make_fleet().config)
    for value, generation in ((20, documents.read(budget.LIMIT)[1]), (None, None)):
        generation = generation or documents.read(budget.LIMIT)[1]
        documents.write(budget.LIMIT, {"month_usd": value}, generation)  # by another computer
        assert budget.limit_of(make_fleet()) == value
        assert json.loads((home / "budget.json").read_text())["month_usd"] == value


def test_a_limit_whose_document_is_gone_is_not_lifted_by_that(bucket):
    budget.set_limit(make_fleet(), 50)
    bucket.objects.clear()  # the bucket was made anew
    with pytest.raises(Unsafe, match=r"is gone, and held \$50.00 .*; set it again"):
        budget.check(make_fleet(), "it", 0.01, 3600)
    budget.set_limit(make_fleet(), None)
    budget.check(make_fleet(), "it", 0.01, 3600)


@pytest.mark.parametrize("name", ["budget", "spending"])
def test_a_damaged_document_is_not_taken_for_none(home, server, name):
    fleet = make_fleet()
    budget.set_limit(fleet, 50)
    documents = open_documents(fleet.config)
    there = documents.read(name)
    value = {"month_usd": "50USD"} if name == "budget" else {"machines": []}
    documents.write(name, value, there[1] if there else NEW)
    with pytest.raises(Unsafe, match="is damaged"):
        budget.check(fleet, "it", 0.01, 3600)

"""`gchat synth worker|status|priority|dead` against an endpoint that fails in every way."""

import json
import sqlite3

import pytest

from gchat.__main__ import main
from gchat.queue import Item, open_queue
from tests.fakes.openai_api import serve

FAULTS = ["rate", "overloaded", "page", "garbage", "hang up", "server error", "rate"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work.queue"


def fill(path, count=12, **fields):
    """A queue of questions."""
    with open_queue(path, create=True) as queue:
        queue.add(
            Item(f"i{n}", {"messages": [{"role": "user", "content": f"n {n}"}], "n": n, **fields})
            for n in range(count)
        )


def run(capsys, *words):
    """Exit status, stdout and stderr of `gchat synth WORDS`."""
    status = main(["synth", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def state(capsys, path):
    code, out, _ = run(capsys, "status", path, "--json")
    assert code == 0
    return json.loads(out)


def test_each_fault_of_an_endpoint_finds_its_place(path, capsys):
    fill(path)
    with serve() as endpoint:
        endpoint.faults.extend(FAULTS)
        words = ["--endpoint", endpoint.url, "--model", "small", "--concurrency", "3", "--json"]
        words += ["--prompt-price", "1000", "--backoff-s", "0.01"]
        code, out, err = run(capsys, "worker", path, *words)
        assert code == 0, err
        asked = len(endpoint.seen)
    facts = json.loads(out)
    assert (facts["done"], facts["failed"], facts["lost"]) == (12, len(FAULTS), 0)
    assert asked == 12 + len(FAULTS)
    assert facts["failures"] == {
        "endpoint 429": 2, "endpoint 503": 1, "endpoint 502": 1, "answer": 1, "broken off": 1,
        "endpoint 500": 1,
    }  # fmt: skip
    told = state(capsys, path)
    assert (told["done"], told["waiting"], told["dead"], told["eta_s"]) == (12, 0, 0, 0.0)
    assert told["failures"] == facts["failures"] and told["cost"] == facts["cost"] > 0
    with open_queue(path) as queue:
        for one in queue.results():
            assert one.result["text"] == f"You said: n {one.id[1:]}"


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_asked_for_again(path, capsys):
    fill(path, 3)
    with serve() as endpoint:
        endpoint.faults.append("stall")
        words = ["--endpoint", endpoint.url, "--model", "small", "--timeout-s", "2", "--json"]
        code, out, err = run(capsys, "worker", path, *words, "--backoff-s", "0.01")
    facts = json.loads(out)
    assert (code, facts["done"]) == (0, 3), err
    assert facts["failures"]["time-out"] >= 1


def test_what_cannot_be_answered_is_listed_and_tried_again(path, capsys):
    fill(path, 3)
    with serve() as endpoint:
        words = ["worker", path, "--endpoint", endpoint.url, "--model", "small"]
        words += ["--concurrency", "1"]
        endpoint.faults.append("llama.cpp too long")
        assert run(capsys, *words)[0] == 0
        _, out, _ = run(capsys, "dead", path)
        assert out.startswith("i0  tried once  refused 400: ") and out.count("\n") == 1
        _, out, _ = run(capsys, "status", path)
        assert "2 of 3 done (66.7%)" in out and "1 given up" in out and "1 refused 400" in out
        assert json.loads(run(capsys, "dead", path, "--retry", "--reason", "x", "--json")[1]) == {
            "retried": 0
        }
        assert "1 items wait again" in run(capsys, "dead", path, "--retry")[1]
        assert run(capsys, *words)[0] == 0
    assert state(capsys, path)["done"] == 3


def test_a_wrong_key_or_a_spent_budget_gives_everything_back(path, capsys):
    fill(path, 9)
    with serve() as endpoint:
        words = ["worker", path, "--endpoint", endpoint.url, "--model", "small"]
        code, _, err = run(capsys, *words, "--max-requests", "4", "--concurrency", "2")
        assert code == 1 and "the budget of 4 requests is spent" in err
        told = state(capsys, path)
        assert (told["done"], told["waiting"], told["leased"]) == (4, 5, 0)
        endpoint.faults.extend(["wrong key"] * 9)
        code, _, err = run(capsys, *words)
        assert code == 1 and "401" in err and err.count("\n") == 1
    told = state(capsys, path)
    assert (told["done"], told["waiting"], told["failures"]) == (4, 5, {})


def test_an_endpoint_that_is_down_is_one_line(path, capsys):
    fill(path, 2)
    words = ["worker", path, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]
    code, _, err = run(capsys, *words, "--patience-s", "0.1")
    assert code == 1 and err.count("\n") == 1 and "cannot be reached" in err
    assert state(capsys, path)["waiting"] == 2


def test_priorities_change_while_items_wait(path, capsys):
    fill(path, 4)
    _, out, _ = run(capsys, "priority", path, "--to", "5", "--where", "n=2")
    assert out == "1 items have priority 5\n"
    _, out, _ = run(capsys, "priority", path, "--to", "-1", "--all", "--json")
    assert json.loads(out) == {"changed": 4}
    run(capsys, "priority", path, "--to", "1", "--where", "n=3")
    with open_queue(path) as queue:
        assert [lease.item.id for lease in queue.lease(4, 9, "w")] == ["i3", "i0", "i1", "i2"]


def other_version(path):
    fill(path, 2)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()


def no_queue(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs(x)")
    db.close()


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (lambda path: None, "there is no queue at"),
        (other_version, "has version 2, and this program reads 1; finish it with the gaia"),
        (no_queue, "is a database, but no queue"),
        (lambda path: path.write_text("x" * 5000), "file is not a database"),
        (lambda path: path.mkdir(), "is no file"),
    ],
)
def test_what_is_no_queue_is_refused_in_one_line_and_stays_as_it_is(path, capsys, made, line):
    made(path)
    before = path.read_bytes() if path.is_file() else None
    verbs = [
        ["status", path], ["dead", path, "--retry"], ["priority", path, "--to=1", "--all"],
        ["worker", path, "--endpoint", "http://127.0.0.1:9/v1"],
    ]  # fmt: skip
    for words in verbs:
        code, out, err = run(capsys, *words)
        assert code in (1, 2) and not out and line in err and err.count("\n") == 1
    assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(path.parent.iterdir()) == ([path] if path.exists() else [])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["status", "mysql://h/d"], "is no address of a queue"),
        (["priority", "{q}", "--to", "1"], "give --where, or --all"),
        (["priority", "{q}", "--to", "1", "--where", "kind"], "write NAME=VALUE"),
        (["worker", "{q}", "--endpoint", "http://h/v1", "--concurrency", "0"], "concurrency is 0"),
        (["worker", "{q}", "--endpoint", "http://h/v1", "--lease-s", "0"], "lease_s is 0"),
        (["status", "{q}", "--watch", "--every-s", "0"], "seconds above 0"),
    ],
)
def test_bad_options_are_one_line(path, capsys, words, line):
    fill(path, 1)
    code, _, err = run(capsys, *(word.format(q=path) for word in words))
    assert code == 2 and line in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "address", ["mysql://me:secret@h/d", "sqs://me:secret@name", "pubsub://me:secret@p/n?x=y"]
)
def test_an_address_that_is_none_is_not_repeated_with_its_password(capsys, address):
    code, out, err = run(capsys, "status", address)
    assert code == 2 and not out and address.partition(":")[0] in err and "secret" not in err

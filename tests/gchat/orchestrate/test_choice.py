"""The order of turns, what their ends mean, and memory that is waited for."""

import inspect
from pathlib import Path

import pytest

from gchat.orchestrate import choice, memory, plan, processes
from gchat.orchestrate.runner import judged
from gchat.orchestrate.store import LOST_IN_A_ROW, Row, Store
from gchat.orchestrate.warden import Result


def row(name, *, state="waiting", since=0.0, turns=0, covered=0, **fields):
    work = plan.workload(name, {"command": "true", **fields})
    return Row(work=work, place=0, origin="plan", state=state, since=since, not_before=0.0,
               turns=turns, runs=0, covered=covered, failures=0, lost=0, seconds=0.0,
               message="")  # fmt: skip


def test_waiting_raises_what_is_overtaken_for_ever():
    low, high = row("low", priority=0), row("high", priority=5, since=3600.0 * 4)
    assert choice.choose([low, high], 3600.0 * 4, 1.0)[0] is high  # 4 hours against 5 points
    high = row("high", priority=5, since=3600.0 * 5.5)
    assert choice.choose([low, high], 3600.0 * 5.5, 1.0)[0] is low
    assert choice.choose([low, high], 3600.0 * 5.5, 0.0)[0] is high  # without aging never


def test_what_follows_a_turn_waits_for_the_next_one():
    train, judge = row("train", turns=2), row("judge", each="train", covered=2)
    assert not choice.may_run(judge, [train, judge])
    judge = row("judge", each="train", covered=1)
    assert choice.choose([train, judge], 1.0, 1.0)[0] is judge  # before the next turn


@pytest.mark.parametrize("outcome", ["failed", "lost", "yielded"])
def test_what_follows_a_turn_still_follows_it_when_its_own_turn_came_to_nothing(tmp_path, outcome):
    store = Store(tmp_path, make=True)
    store.take_plan(
        [
            plan.workload("train", {"command": "true"}),
            plan.workload("judge", {"command": "true", "each": "train", "retries": 1}),
        ]
    )
    may = lambda: choice.may_run(store.row("judge"), store.rows())  # noqa: E731
    store.end(store.begin("train", ["true"]), "done", "")
    for _ in range(2):
        assert may()
        state = store.end(store.begin("judge", ["true"]), outcome, "")
    for _ in range(LOST_IN_A_ROW - 2 if outcome == "lost" else 0):
        state = store.end(store.begin("judge", ["true"]), outcome, "")
    if outcome != "yielded":  # given up; put back by hand, it still has its turn
        assert state == "failed" and not may()
        store.again("judge")
    assert may()
    assert store.end(store.begin("judge", ["true"]), "done", "") == "done"
    assert not may() and store.row("judge").covered == store.row("train").turns == 1
    store.close()


def planned(store, *names, **fields):
    """The state of workload `a` after a plan of these workloads is taken."""
    store.take_plan([plan.workload(name, {"command": "true", **fields}) for name in names])
    return store.row("a").state


def run(store, outcome="done"):
    return store.end(store.begin("a", ["true"]), outcome, "")


def test_a_new_number_of_runs_counts_from_what_has_run(tmp_path):
    store = Store(tmp_path, make=True)
    planned(store, "a", times=3)
    assert [run(store), run(store)] == ["waiting", "waiting"]
    assert planned(store, "a", times=1) == "done"  # not endless, since 2 runs are not 1
    assert planned(store, "a", times=4) == "waiting"
    assert [run(store), run(store)] == ["waiting", "done"]
    assert planned(store, "a", times=4) == "done"
    assert planned(store, "a", times=0) == "waiting"
    assert [run(store), run(store)] == ["waiting", "waiting"]  # 0 is without an end
    assert planned(store, "a", times=6) == "done"
    store.close()


@pytest.mark.parametrize("outcome", ["done", "lost", "yielded", "failed"])
def test_fewer_runs_end_with_the_turn_that_a_killed_orchestrator_left(tmp_path, outcome):
    store = Store(tmp_path, make=True)
    planned(store, "a", times=3)
    run(store)
    turn = store.begin("a", ["true"])
    assert planned(store, "a", times=1) == "done"
    assert store.end(turn, outcome, "") == store.row("a").state == "done"
    store.close()


def test_work_that_was_put_back_by_hand_runs_once_more(tmp_path):
    store = Store(tmp_path, make=True)
    planned(store, "a", "b")
    turn = store.begin("a", ["true"])
    store.mark_stopped("a")
    assert store.end(turn, "done", "") == "stopped"
    store.again("a")
    assert planned(store, "a", "b") == "waiting"  # the number is the old one
    assert run(store) == "done"
    assert planned(store, "b") == "done"
    store.close()


def test_work_that_ended_out_of_the_plan_is_done_when_it_comes_back(tmp_path):
    store = Store(tmp_path, make=True)
    planned(store, "a", "b")
    turn = store.begin("a", ["true"])
    assert planned(store, "b") == store.end(turn, "done", "") == "stopped"
    assert planned(store, "a", "b") == "done"
    store.close()


@pytest.mark.parametrize(
    ("result", "why", "done", "outcome"),
    [
        (Result(), "", False, "done"),
        (Result(status=3), "", False, "failed"),
        (Result(status=-9), "", False, "failed"),
        (Result(stopped=True, status=-15), "slice", False, "yielded"),
        (Result(stopped=True), "limit", False, "failed"),
        (Result(status=3), "", True, "done"),
        (None, "", False, "lost"),
        (None, "", True, "done"),
        (Result(problem="the orchestrator is gone", stopped=True), "", False, "lost"),
        (Result(status=127, problem="x: No such file"), "", False, "failed"),
    ],
)
def test_outcomes(result, why, done, outcome):
    assert judged(result, why, done=done)[0] == outcome


def test_a_training_of_the_examples_goes_on_also_without_a_checkpoint():
    """Its config.yaml is there long before its first checkpoint; a kill may come between them."""
    page = Path(__file__).parents[3] / "docs/orchestrate.md"
    for text in (page.read_text(), inspect.getdoc(plan)):
        train = text.partition("  train:\n")[2].partition("    slice:")[0]
        assert "begun: " in train and "resume: gchat train --resume --allow-restart " in train


def test_memory_is_waited_for(monkeypatch):
    monkeypatch.setattr(memory.time, "sleep", lambda seconds: None)
    values = iter([[9000], [9000], [1200]])
    assert memory.wait_until_back(lambda: next(values), [1000], 5) == (True, [1200])
    assert memory.wait_until_back(lambda: [9000], [1000], 0.0) == (False, [9000])


def test_killing_finds_nothing_to_kill():
    assert processes.kill(list) == 0

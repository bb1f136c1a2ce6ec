"""The supervisor's loop: killed, doubled and interleaved at every point of it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gml.errors import NotFound
from gml.request import NodeRequest
from gml.supervisor.loop import LEASE_S, Lost, Supervisor
from gml.supervisor.plan import SILENT_S, Seen, lifetime, next_step
from gml.supervisor.queue import Job, Machine, Queue, begin, load, queue_names, update
from tests.fakes.supervised import Killed, MemoryDocuments, Watched, World, WorldDriver


def new_queue(world: World, *jobs: str, hours: float = 1000, **more) -> Queue:
    made = tuple(Job(name, f"run {name}") for name in jobs)
    request = NodeRequest(instance_type="v6e-8", provider="google", spot=True)
    return Queue("q", "tester", request, round(world.clock + hours * 3600), jobs=made, **more)


def one_pass(world: World, documents) -> list[str]:
    worker = Supervisor(Watched(documents, world), lambda q: WorldDriver(world), world.now)
    return worker.run()


def kill_at(world: World, number: int) -> list[int]:
    """Kills the process at its point of that number; counts the points."""
    count = [0]

    def hook() -> None:
        count[0] += 1
        if count[0] - 1 == number:
            raise Killed

    world.hook = hook
    return count


def live_through(world: World, documents, passes: int = 40) -> None:
    """Passes until nothing is left to do; each job loses its first machine in the middle."""
    lost: set[str] = set()
    for _ in range(passes):
        one_pass(world, documents)
        working = [m for m, n in world.machines.items() if not n.dead()]
        assert len(working) <= 1, "two machines at once"
        for _, job in world.running():
            if job not in lost and "-r" not in job:
                lost.add(job)
                world.preempt()
            else:
                world.finish()
        world.clock += 60
        if all(j.state in ("done", "failed") for j in load(documents, "q")[0].jobs):
            one_pass(world, documents)
            return
    raise AssertionError("it never came to an end")


def test_two_jobs_one_machine_each_time_and_none_in_the_end():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a", "b"))
    live_through(world, documents)
    queue = load(documents, "q")[0]
    assert [(j.state, j.exit_code, j.attempt) for j in queue.jobs] == [("done", 0, 1)] * 2
    # b starts on the machine on which a ended, and is resumed on the third.
    assert world.starts == [("q-1", "a"), ("q-2", "a-r1"), ("q-2", "b"), ("q-3", "b-r1")]
    assert world.machines == {} and queue.machine is None and queue.restarts == 2
    assert queue.spent == pytest.approx(10.0 * 4 * 60 / 3600, abs=0.02)
    assert documents.read("logs/q/a") == ({"log": "the log\n"}, documents.read("logs/q/a")[1])


def test_killed_at_every_point_nothing_is_doubled_and_nothing_forgotten():
    number, reached = 0, True
    while reached:
        world, documents = World(), MemoryDocuments()
        begin(documents, new_queue(world, "a", "b"))
        count = kill_at(world, number)
        with contextlib.suppress(Killed):
            live_through(world, documents)
        reached = count[0] > number
        world.hook = lambda: None
        # Another one, right away, keeps its hands off what the killed one may still hold.
        before = list(world.made)
        one_pass(world, documents)
        world.clock += LEASE_S + 1
        live_through(world, documents)
        queue = load(documents, "q")[0]
        assert [j.state for j in queue.jobs] == ["done", "done"], number
        assert world.machines == {} and queue.machine is None, number
        assert len(set(world.starts)) == len(world.starts), number
        assert len(world.made) <= 5 and before == world.made[: len(before)], number
        number += 1
    assert number > 40


def test_removal_killed_at_every_point_ends_with_nothing():
    number, reached = 0, True
    while reached:
        world, documents = World(), MemoryDocuments()
        begin(documents, new_queue(world, "a"))
        one_pass(world, documents)
        assert world.running()
        update(documents, "q", lambda q: q.replace(removing=True))
        count = kill_at(world, number)
        with contextlib.suppress(Killed):
            one_pass(world, documents)
        reached = count[0] > number
        world.hook = lambda: None
        world.clock += LEASE_S + 1
        one_pass(world, documents)
        assert world.machines == {} and queue_names(documents) == [], number
        assert documents.names("logs") == [], number
        number += 1
    assert number > 6


@pytest.mark.parametrize("late", [False, pytest.param(True, id="after its lease ran out")])
def test_a_second_supervisor_at_every_point(late):
    """It waits for the lease; once that has run out, the first one is the one that gives up."""
    number, reached = 0, True
    while reached:
        world, documents = World(), MemoryDocuments()
        begin(documents, new_queue(world, "a"))
        count = [0]

        def hook(world=world, documents=documents, number=number, count=count) -> None:
            count[0] += 1
            if count[0] - 1 == number:
                world.hook = lambda: None
                world.clock += LEASE_S + 1 if late else 1
                made = len(world.made)
                one_pass(world, documents)
                assert late or len(world.made) == made or number < 2
                world.hook = hook_again

        def hook_again(count=count) -> None:
            count[0] += 1

        world.hook = hook
        one_pass(world, documents)
        reached = count[0] > number
        world.hook = lambda: None
        world.clock += LEASE_S + 1
        live_through(world, documents)
        assert world.machines == {}, number
        assert [j.state for j in load(documents, "q")[0].jobs] == ["done"], number
        number += 1


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("kill"), st.integers(0, 30)),
        st.tuples(st.just("other"), st.integers(0, 30)),
        st.sampled_from([("preempt", 0), ("finish", 0), ("finish", 3), ("full", 0), ("free", 0),
                         ("away", 0), ("back", 0), ("wait", 60), ("wait", LEASE_S + 1),
                         ("add", 0), ("none", 0)]),
    ),
    max_size=25,
)  # fmt: skip


@pytest.mark.parametrize("examples", [25, pytest.param(600, marks=pytest.mark.slow)])
def test_any_order_of_events_ends_clean(examples):
    @settings(max_examples=examples, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(EVENTS)
    def ends_clean(events):
        world, documents = World(), MemoryDocuments()
        begin(documents, new_queue(world, "a", "b", max_restarts=1000))
        added = 2
        for kind, value in events:
            world.hook = lambda: None
            if kind in ("kill", "other"):
                kill_at(world, value) if kind == "kill" else _other_at(world, documents, value)
            elif kind == "wait":
                world.clock += value
            elif kind == "preempt":
                world.preempt()
            elif kind == "finish":
                world.finish(value)
            elif kind in ("full", "free"):
                world.full = kind == "full"
            elif kind in ("away", "back"):
                world.unreachable = kind == "away"
            elif kind == "add":
                added += 1
                job = Job(f"j{added}", "run")
                update(documents, "q", lambda q, j=job: q.replace(jobs=(*q.jobs, j)))
            with contextlib.suppress(Killed):
                one_pass(world, documents)
            ready = [n for n in world.machines.values() if n.state == "ready"]
            assert len(ready) <= 2  # a supervisor that lost its lease may leave one, for a pass
        world.hook = lambda: None
        world.full = world.unreachable = False
        world.clock += LEASE_S + 1
        one_pass(world, documents)
        assert len(world.machines) <= 1
        live_through(world, documents, 80)
        queue = load(documents, "q")[0]
        assert world.machines == {} and queue.machine is None
        assert len(queue.jobs) == added
        assert {j.state for j in queue.jobs} <= {"done", "failed"}
        assert all(j.exit_code == 3 for j in queue.jobs if j.state == "failed")
        assert len(set(world.starts)) == len(world.starts)

    ends_clean()


def _other_at(world: World, documents, number: int) -> None:
    count = [0]

    def hook() -> None:
        count[0] += 1
        if count[0] - 1 == number:
            world.hook = lambda: None
            world.clock += LEASE_S + 1
            one_pass(world, documents)

    world.hook = hook


def test_the_deadline_ends_machine_and_jobs_whatever_runs():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a", "b", hours=1))
    one_pass(world, documents)
    world.clock += 3601
    one_pass(world, documents)
    queue = load(documents, "q")[0]
    assert world.machines == {} and world.running() == []
    assert [(j.state, j.note) for j in queue.jobs] == [
        ("failed", "the queue's deadline is past")
    ] * 2


def test_a_job_that_fails_does_not_keep_the_next_one():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a", "b"))
    one_pass(world, documents)
    world.finish(7)
    one_pass(world, documents)
    assert [(j.state, j.exit_code) for j in load(documents, "q")[0].jobs] == [
        ("failed", 7), ("running", None)
    ]  # fmt: skip
    assert world.made == ["q-1"]


def test_no_capacity_is_asked_for_again_and_is_no_restart():
    world, documents = World(full=True), MemoryDocuments()
    begin(documents, new_queue(world, "a"))
    assert one_pass(world, documents) == []
    assert load(documents, "q")[0].note == "nothing anywhere"
    made = load(documents, "q")[0].made
    one_pass(world, documents)  # at once: not asked
    assert load(documents, "q")[0].made == made
    world.full = False
    world.clock += 61
    one_pass(world, documents)
    assert [j.state for j in load(documents, "q")[0].jobs] == ["running"]
    assert load(documents, "q")[0].restarts == 0


def test_too_many_losses_end_it():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a", max_restarts=2))
    for _ in range(5):
        one_pass(world, documents)
        world.preempt()
        world.clock += 60
    queue = load(documents, "q")[0]
    assert len(world.made) == 3 and world.machines == {}
    assert "taken away 3 times" in queue.jobs[0].note


def test_a_cloud_that_does_not_answer_changes_nothing():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a"))
    one_pass(world, documents)
    world.unreachable = True
    assert "does not answer" in one_pass(world, documents)[0]
    queue = load(documents, "q")[0]
    assert queue.machine.phase == "up" and queue.lease == ("", 0) and len(world.machines) == 1
    world.unreachable = False
    world.finish()
    one_pass(world, documents)
    assert world.machines == {}


def test_the_lease_is_respected_and_said():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a", lease=("someone", round(world.clock) + 100)))
    worker = Supervisor(documents, lambda q: WorldDriver(world), world.now)
    with pytest.raises(Lost):
        worker.reconcile("q")
    assert worker.run() == [] and world.made == []
    with pytest.raises(NotFound, match="known: q"):
        load(documents, "nope")


def test_a_machine_that_stays_silent_is_replaced_and_one_that_answers_again_is_not():
    world = World()
    machine = Machine("q-1", "up", 0)
    queue = new_queue(world, "a", machine=machine, silent_since=round(world.clock))
    seen = Seen({"q-1": None}, {}, "silent")  # type: ignore[dict-item]
    assert next_step(queue, seen, world.clock + SILENT_S - 1).kind == "rest"
    step = next_step(queue, seen, world.clock + SILENT_S + 1)
    assert (step.kind, step.again) == ("drop", True)
    assert next_step(queue, Seen(seen.machines, {}, "running"), world.clock + 9e5).kind == "rest"


def test_the_budget_bounds_lifetime_and_price():
    world = World()
    queue = new_queue(world, "a", hours=10, budget=50.0, bills={"q-1": 10.0})
    # $40 are left: 4 h at $10; nothing dearer than that, or it would not be kept.
    assert lifetime(queue, 10.0, world.clock) == (4 * 3600, 10.0)
    # Enough for all ten hours: places at up to $4/h may be taken.
    assert lifetime(queue, 2.0, world.clock) == (36000, 4.0)
    assert lifetime(queue, None, world.clock) == (0, None)
    spent = queue.replace(bills={"q-1": 50.0})
    step = next_step(spent, Seen(), world.clock)
    assert (step.kind, step.why) == ("fail", "its budget of $50.00 is used up")


def test_who_has_lost_the_lease_changes_nothing_any_more():
    world, documents = World(), MemoryDocuments()
    begin(documents, new_queue(world, "a"))
    first, second = (
        Supervisor(documents, lambda q: WorldDriver(world), world.now) for _ in range(2)
    )
    first._take("q")
    world.clock += LEASE_S + 1
    second._take("q")
    before = documents.read("queues/q")
    with pytest.raises(Lost):
        first._change("q", lambda q: q.replace(machine=None, note="mine"))
    assert documents.read("queues/q") == before


def test_a_half_made_machine_is_never_taken_for_a_whole_one():
    world = World()
    for phase in ("creating", "deleting"):
        queue = new_queue(world, "a", machine=Machine("q-1", phase, 0))
        live = Seen({"q-1": None}, {}, "none")  # type: ignore[dict-item]
        for seen in (live, Seen()):
            step = next_step(queue, seen, world.clock)
            assert (step.kind, step.again) == ("drop", False), phase

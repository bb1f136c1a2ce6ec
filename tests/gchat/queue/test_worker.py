"""Workers: slots stay full, leases are held, signals give all back, faults cost nothing."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from disks import fill, small_disk
from gchat.queue import (
    Failed,
    Item,
    QueueError,
    Rules,
    Tally,
    in_threads,
    open_queue,
    run_worker,
    work,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def queue(tmp_path):
    with open_queue(tmp_path / "q", create=True) as made:
        yield made


def add(queue, count, **fields):
    assert queue.add(Item(f"i{n}", {"n": n, **fields}) for n in range(count)) == count


async def square(payload):
    await asyncio.sleep(0)
    return {"square": payload["n"] ** 2}


def test_a_failed_item_never_shifts_its_neighbours(queue):
    add(queue, 40)

    async def do(payload):
        await asyncio.sleep(0.001 * (payload["n"] % 3))
        if payload["n"] % 7 == 3:
            raise Failed("schema: no", retry=False)
        if payload["n"] == 5:
            raise KeyError("a bug")
        return {"square": payload["n"] ** 2}

    tally, _ = run_worker(queue, do, Rules(concurrency=8, backoff_s=0.001))
    assert (tally.done, tally.lost, tally.released) == (33, 0, 0)
    got = {one.id: one.result["square"] for one in queue.results()}
    assert got == {f"i{n}": n**2 for n in range(40) if n % 7 != 3 and n != 5}
    dead = {one.item.id: (one.reason, one.attempts) for one in queue.dead()}
    assert dead.pop("i5") == ("KeyError: 'a bug'", 5)
    assert dead == {f"i{n}": ("schema: no", 1) for n in range(40) if n % 7 == 3}
    assert queue.facts().failures == {"schema": 6, "KeyError": 5}


def test_slots_stay_full_while_items_last(queue):
    add(queue, 300)
    running, most = 0, 0

    async def do(payload):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return {}

    run_worker(queue, do, Rules(concurrency=16))
    assert most == 16


@pytest.mark.slow  # kills at every point have one in the heartbeat by default
def test_leases_of_running_and_waiting_items_are_held(queue):
    add(queue, 6)  # four in work, two that were leased ahead
    others = []

    async def do(payload):
        await asyncio.sleep(4)  # longer than the lease
        others.extend(queue.lease(5, 60, "a thief"))
        return {}

    tally, _ = run_worker(queue, do, Rules(concurrency=4, lease_s=3))
    assert (tally.done, tally.lost, others) == (6, 0, [])


def test_an_answer_after_its_lease_is_dropped(queue):
    add(queue, 1)
    taken = []

    async def do(payload):
        time.sleep(0.3)
        taken.extend(queue.lease(1, 60, "another"))
        return {"from": "the first"}

    async def main():
        stop = asyncio.Event()
        task = asyncio.create_task(work(queue, do, rules=Rules(lease_s=0.1, grace_s=0), stop=stop))
        while not taken and not task.done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        stop.set()
        return await task

    tally = asyncio.run(main())
    assert (tally.done, tally.lost) == (0, 1)
    assert queue.complete(taken[0], {"from": "the second"})
    assert [one.result for one in queue.results()] == [{"from": "the second"}]


def test_a_limit_of_the_endpoint_pauses_everybody_and_spends_no_attempt(queue):
    add(queue, 20)
    refused = set()

    async def do(payload):
        if len(refused) < 9 and payload["n"] not in refused:
            refused.add(payload["n"])
            raise Failed("endpoint 429: slow down", pause_s=0.05)
        return {}

    tally, _ = run_worker(queue, do, Rules(concurrency=4, backoff_s=0.1))
    assert tally.done == 20 and tally.paused_s > 0 and not list(queue.dead())
    lease_again = queue.facts()
    assert lease_again.failures == {"endpoint 429": len(refused)}


class Clock:
    """The real one, which can be put forward."""

    ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead


@pytest.mark.parametrize("gone", ["to another worker", "to the dead letter"])
def test_patience_begins_anew_when_the_endpoint_has_answered_or_was_not_asked(
    queue, monkeypatch, gone
):
    """Two limits of an endpoint, a thousand seconds apart, are no thousand seconds of silence."""
    clock, tally = Clock(), Tally()
    monkeypatch.setattr("gchat.queue.worker.time", clock)
    limited, second_begun = set(), asyncio.Event()

    async def do(payload):
        number = payload["n"]
        if number == 1 and gone == "to the dead letter":
            second_begun.set()
            while not clock.ahead:
                await asyncio.sleep(0.01)
        if number in limited and number == 0:
            raise Failed("schema: no", retry=False)
        if number in limited:
            return {}
        limited.add(number)
        raise Failed("endpoint 429: slow down", pause_s=0.01)

    fail, lease, looks = queue.fail, queue.lease, []

    def look(*args):
        looks.append(args)
        return lease(*args)

    monkeypatch.setattr(queue, "lease", look)

    def lost(held, reason, **more):
        """The item goes back, and another worker has it at once."""
        return not queue.complete(held, {})

    async def main():
        stop = asyncio.Event()
        rules = Rules(concurrency=1, backoff_s=0.01, wait=True)
        task = asyncio.create_task(work(queue, do, rules=rules, stop=stop, tally=tally))
        add_one = lambda n: queue.add([Item(f"i{n}", {"n": n})])  # noqa: E731
        if gone == "to another worker":
            monkeypatch.setattr(queue, "fail", lost)
        add_one(0)
        if gone == "to another worker":
            while not tally.lost and not task.done():
                await asyncio.sleep(0.01)
            monkeypatch.setattr(queue, "fail", fail)
            enough = len(looks) + 2  # it has come out of its pause, and has nothing to do
            while len(looks) < enough and not task.done():
                await asyncio.sleep(0.01)
            clock.ahead = 1000.0
            add_one(1)
        else:
            while not queue.counts().dead and not task.done():
                await asyncio.sleep(0.01)
            add_one(1)
            await asyncio.wait([task, asyncio.create_task(second_begun.wait())],
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            clock.ahead = 1000.0
        while not tally.done and not task.done():
            await asyncio.sleep(0.01)
        stop.set()
        await task

    asyncio.run(main())
    assert tally.done == 1


def test_an_endpoint_that_stays_away_ends_the_worker_and_loses_nothing(queue):
    add(queue, 30)

    async def do(payload):
        raise Failed("endpoint away: no connection", pause_s=0.01)

    with pytest.raises(Failed, match=r"no connection .* without an answer"):
        run_worker(queue, do, Rules(concurrency=4, patience_s=0.1, backoff_s=0.1))
    counts = queue.counts()
    assert (counts.waiting, counts.dead) == (30, 0)
    assert all(lease.attempt == 1 for lease in queue.lease(30, 60, "x"))


def test_a_fatal_error_gives_back_all_and_spends_nothing(queue):
    add(queue, 30)

    async def do(payload):
        if payload["n"] == 7:
            raise Failed("the endpoint answered 401: wrong key", fatal=True)
        await asyncio.sleep(0.005)
        return {}

    with pytest.raises(Failed, match="wrong key"):
        run_worker(queue, do, Rules(concurrency=4, grace_s=1))
    counts = queue.counts()
    assert counts.leased == 0 and counts.waiting + counts.done == 30
    assert all(lease.attempt == 1 for lease in queue.lease(30, 60, "x"))


def test_results_that_are_no_json_are_given_up(queue):
    add(queue, 3)
    odd = {0: {"x": float("nan"), "cost": 0.25}, 1: {"x": "\ud800"}, 2: {"x": object()}}

    async def do(payload):
        return odd[payload["n"]]

    tally, _ = run_worker(queue, do)
    assert len(list(queue.dead())) == 3 and queue.counts().dead == 3
    assert tally.cost == queue.facts().cost == 0.25  # paid for all the same


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGHUP", "SIGINT"))]
)
def test_signals_release_to_zero(name, tmp_path):
    """All that was leased can be had at once: no lease has to run out."""
    script = """
import asyncio, sys
from gchat.queue import Rules, open_queue, run_worker
async def do(payload):
    print("begun", flush=True)
    await asyncio.sleep(3600 if payload["n"] else 0)
    return {}
with open_queue(sys.argv[1]) as queue:
    tally, told = run_worker(queue, do, Rules(concurrency=3, lease_s=3600, grace_s=0.1))
    print(tally.done, tally.released, told.name)
"""
    with open_queue(tmp_path / "q", create=True) as queue:
        add(queue, 50)
        words = [sys.executable, "-c", script, str(tmp_path / "q")]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE) as worker:  # fmt: skip
            for _ in range(4):
                assert worker.stdout.readline() == "begun\n", worker.stderr.read()
            worker.send_signal(signal.Signals[name])
            out, err = worker.communicate(timeout=240)
        assert worker.returncode == 0, err
        done, released, told = out.split()
        assert (done, told) == ("1", name) and int(released) >= 3
        assert name in err and err.count("\n") == 2
        assert (queue.counts().waiting, queue.counts().leased) == (49, 0)
        assert all(lease.attempt == 1 for lease in queue.lease(50, 60, "x"))


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("gchat.queue.worker._QUEUE_PATIENCE_S", 0.3)
    with small_disk(tmp_path / "disk", "2m") as disk, open_queue(disk / "q", create=True) as queue:
        add(queue, 60)

        async def do(payload):
            if payload["n"] == 20 and not (disk / "filler").exists():
                fill(disk, leave=0)
            await asyncio.sleep(0.002)
            return {"text": "x" * 4000, "n": payload["n"]}

        with pytest.raises(QueueError, match="make room on the disk") as failure:
            run_worker(queue, do, Rules(concurrency=4, lease_s=0.2, grace_s=0.1))
        assert "\n" not in str(failure.value)
        assert len(list(queue.results())) < 60
        (disk / "filler").unlink()
        run_worker(queue, do=_long, rules=Rules(concurrency=4, lease_s=0.5))
        results = {one.id: one.result["n"] for one in queue.results()}
        assert results == {f"i{n}": n for n in range(60)} and not list(queue.dead())


@pytest.mark.slow
def test_results_wait_for_room_in_their_folder(tmp_path):
    """No inode is left for a folder or a file: the work goes on when there are some again."""
    folder = tmp_path / "disk"
    with (
        small_disk(folder, "2m,nr_inodes=200") as disk,
        open_queue(tmp_path / "q", create=True, results=str(folder / "results")) as queue,
    ):
        add(queue, 60)
        fillers = [disk / f"filler{n}" for n in range(190)]
        for filler in fillers:
            filler.touch()
        room = threading.Timer(2.0, lambda: [filler.unlink() for filler in fillers])
        room.start()
        try:
            tally, _ = run_worker(queue, square, Rules(concurrency=4))
        finally:
            room.join()
        assert (tally.done, tally.lost) == (60, 0)
        got = {one.id: one.result["square"] for one in queue.results()}
        assert got == {f"i{n}": n**2 for n in range(60)}


async def _long(payload):
    return {"text": "x" * 4000, "n": payload["n"]}


def test_a_slow_look_at_the_queue_holds_up_no_work(queue):
    add(queue, 4)
    begun, done, seen = threading.Event(), threading.Event(), []

    def watch(tally):
        begun.set()
        seen.append(done.wait(120))
        raise QueueError("the server", "is just away")

    async def do(payload):
        while not begun.is_set():
            await asyncio.sleep(0.005)
        done.set()
        return {}

    tally, _ = run_worker(queue, do, Rules(concurrency=2), watch=watch, every_s=0.01)
    assert tally.done == 4 and all(seen)


def test_blocking_functions_run_beside_one_another(queue):
    add(queue, 8)
    gate = threading.Barrier(8)

    def do(payload):
        gate.wait(120)  # passes only where all eight are in work at once
        return {}

    tally, _ = run_worker(queue, in_threads(do, 8), Rules(concurrency=8))
    assert tally.done == 8

"""A worker: leases items, keeps its slots full, holds its leases, and settles what comes out.

Everything runs in one event loop; calls of the queue go to a few threads. An item's slot is free
as soon as its answer is there: keeping the result is done beside, and some items are leased ahead,
so that no slot waits for the queue.
"""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from gaia.errors import GaiaError
from gaia.storage import StorageError
from gchat.queue.failed import Failed
from gchat.queue.protocol import Lease, Queue, QueueError, cost_of, kind_of
from gchat.queue.rules import Rules, Tally
from gchat.queue.threads import Threads

Do = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_LANES = 16  # threads for calls of the queue, which share what each waits for (a sync, a server)
_FIRST_POLL_S, _LONGEST_POLL_S = 0.02, 1.0  # between two looks at a queue that has nothing to lend
_LONGEST_BACKOFF_S = 600.0
_QUEUE_PATIENCE_S = 30.0  # with a queue that cannot be written


async def work(
    queue: Queue,
    do: Do,
    *,
    rules: Rules | None = None,
    concurrency: int | None = None,
    lease_s: float | None = None,
    wait: bool | None = None,
    stop: asyncio.Event | None = None,
    hurry: asyncio.Event | None = None,
    name: str = "",
    tally: Tally | None = None,
) -> Tally:
    """Works on a queue until nothing is open in it, or until told to stop.

    Args:
        queue: to take from.
        do: makes the result of a payload; raises `Failed` to say how it failed.
        rules: of the worker.
        concurrency: in place of that of the rules, as are lease_s and wait.
        lease_s: see `Rules`.
        wait: see `Rules`.
        stop: set, no item is begun any more; running ones get `grace_s`, all others go back.
        hurry: set, running ones get no more time.
        name: of the worker, in the queue's facts.
        tally: counts to go on with, for who watches.

    Raises:
        Failed: a fatal one, after everything was given back.
        QueueError, StorageError: the queue, or the place of its results, cannot be used any more.
    """
    changed = {"concurrency": concurrency, "lease_s": lease_s, "wait": wait}
    given = {key: value for key, value in changed.items() if value is not None}
    rules = Rules(**{**vars(rules or Rules()), **given})
    rules.check()
    worker = _Worker(queue, do, rules, name or worker_name(), tally or Tally())
    return await worker.run(stop or asyncio.Event(), hurry or asyncio.Event())


def worker_name() -> str:
    """A name that no other worker has: machine, process, and four random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


class _Worker:
    def __init__(self, queue: Queue, do: Do, rules: Rules, name: str, tally: Tally) -> None:
        self._queue, self._do, self._rules = queue, do, rules
        self._name, self.tally = name, tally
        self._ahead = max(1, rules.concurrency // 2)
        # Leases have a thread of their own: slots must not wait for results that are being kept.
        self._threads, self._leasing = Threads(_LANES, "queue"), Threads(1, "lease")
        self._ready: deque[Lease] = deque()  # leased, not begun
        self._held: dict[str, Lease] = {}  # all that are leased, by receipt
        self._running: dict[asyncio.Task, Lease] = {}
        self._settling: set[asyncio.Task] = set()
        self._taking: asyncio.Task[int] | None = None
        self._settled_all = asyncio.Event()  # nothing is held any more
        self._wanted = asyncio.Event()  # there may be room for more items
        self._over = asyncio.Event()
        self._ending = False
        self._error: GaiaError | None = None
        self._resume_at = self._trouble_since = 0.0
        self._pauses = 0

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> Tally:
        """Works to the end, and gives back what it holds however that comes."""
        begun = time.monotonic()
        feed = asyncio.create_task(self._feed())
        beat = asyncio.create_task(self._beat())
        told = [asyncio.create_task(event.wait()) for event in (stop, self._over)]
        try:
            await asyncio.wait([feed, *told], return_when=asyncio.FIRST_COMPLETED)
            if feed.done() and not feed.cancelled() and (error := feed.exception()) is not None:
                raise error
        finally:
            await self._end(feed, hurry)
            for task in (beat, *told):
                task.cancel()
            await asyncio.gather(beat, *told, return_exceptions=True)
            self._threads.close()
            self._leasing.close()
            self.tally.wall_s = time.monotonic() - begun
        if self._error is not None:
            raise self._error
        return self.tally

    # ── Items come ──────────────────────────────────────────────────────────────────────────────

    async def _feed(self) -> None:
        """Leases as there is room; ends when nothing is open in the queue."""
        poll_s, empty, busy_at = _FIRST_POLL_S, 0, time.monotonic()
        while True:
            room = self._rules.concurrency + self._ahead - len(self._running) - len(self._ready)
            if room < max(1, self._ahead // 2):
                self._wanted.clear()
                await self._wanted.wait()
                continue
            if (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
                busy_at = time.monotonic()
                continue
            self._taking = asyncio.create_task(self._take(room))
            taken, now = await asyncio.shield(self._taking), time.monotonic()
            if taken and now - busy_at > self._rules.patience_s:
                self._calm()  # nobody was asked for so long
            busy_at = now if self._held else busy_at
            if taken:
                poll_s, empty = _FIRST_POLL_S, 0
                self._dispatch()
                continue
            if not self._held and not self._rules.wait:
                counts = await self._patiently(self._queue.counts)
                empty = empty + 1 if counts.open == 0 else 0
                if empty == 2:  # some backends count with a lag
                    return
            self._settled_all.clear()
            with contextlib.suppress(TimeoutError):
                pause = poll_s * random.uniform(0.7, 1.3)
                await asyncio.wait_for(self._settled_all.wait(), pause)
            poll_s = min(_LONGEST_POLL_S, poll_s * 1.5)

    async def _take(self, n: int) -> int:
        """Leases up to n items; how many."""
        asked = self._queue.lease, n, self._rules.lease_s, self._name
        leases = await self._patiently(*asked, threads=self._leasing)
        for lease in leases:
            self._held[lease.receipt] = lease
            self._ready.append(lease)
        return len(leases)

    def _dispatch(self) -> None:
        """Begins items while slots are free."""
        if self._ending:
            return
        pause = self._resume_at - time.monotonic()
        if pause > 0:
            asyncio.get_running_loop().call_later(pause + 0.001, self._dispatch)
            return
        full = self._rules.concurrency
        # With a queue slower than the endpoint, results that wait to be kept take up slots too.
        while self._ready and len(self._running) < full and len(self._settling) < 2 * full:
            lease = self._ready.popleft()
            task = asyncio.create_task(self._attempt(lease))
            self._running[task] = lease
        self.tally.running = len(self._running)

    # ── Attempts ────────────────────────────────────────────────────────────────────────────────

    async def _attempt(self, lease: Lease) -> None:
        """Makes one attempt, frees its slot, and leaves the outcome to `_settle`."""
        begun = time.monotonic()
        outcome: dict[str, Any] | Exception | None = None
        try:
            outcome = await self._do(lease.item.payload)
            if not isinstance(outcome, dict):
                outcome = TypeError(f"the result is no JSON object but {type(outcome).__name__}")
        except asyncio.CancelledError:
            outcome = None
        except Exception as error:
            outcome = error
        finally:
            self.tally.busy_s += time.monotonic() - begun
            self._running.pop(asyncio.current_task(), None)  # type: ignore[arg-type]
            settling = asyncio.create_task(self._settle(lease, outcome))
            self._settling.add(settling)
            settling.add_done_callback(self._settled)
            self._wanted.set()
            self._dispatch()

    def _settled(self, task: asyncio.Task) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(error if isinstance(error, GaiaError) else QueueError(repr(error)))
        self._dispatch()

    async def _settle(self, lease: Lease, outcome: dict[str, Any] | Exception | None) -> None:
        """Tells the queue how an attempt ended; None: it was broken off."""
        try:
            if outcome is None:
                await self._give_back(lease)
            elif isinstance(outcome, dict):
                await self._keep(lease, outcome)
            else:
                await self._failed(lease, outcome)
        finally:
            self._held.pop(lease.receipt, None)
            if not self._held:
                self._settled_all.set()

    async def _keep(self, lease: Lease, result: dict[str, Any]) -> None:
        try:
            kept = await self._patiently(self._queue.complete, lease, result)
        except (TypeError, ValueError) as error:  # what JSON cannot hold
            cost = cost_of(result)
            await self._failed(
                lease, Failed(f"result is not JSON: {error}", retry=False, cost=cost)
            )
            return
        self._calm()
        if kept:
            self.tally.done += 1
            self.tally.cost += cost_of(result)
        else:
            self.tally.lost += 1

    async def _failed(self, lease: Lease, error: Exception) -> None:
        if not isinstance(error, Failed):
            text = " ".join(str(error).split())[:300]
            error = Failed(f"{type(error).__name__}: {text}" if text else type(error).__name__)
        if error.fatal:
            self._give_up(error)
            await self._give_back(lease)
            return
        if error.pause_s is not None:
            self._pause(error)
        else:
            self._calm()  # it was the item's own failure
        self.tally.failed += 1
        self.tally.cost += error.cost
        self.tally.reasons[kind_of(error.problem)] += 1
        backoff = self._rules.backoff_s * 2 ** (lease.attempt - 1) * random.uniform(0.7, 1.3)
        wait = min(_LONGEST_BACKOFF_S, backoff) if error.after_s is None else error.after_s
        if error.pause_s is not None:
            wait = 0.0  # another worker, with another endpoint, may have it at once
        counts, final = error.pause_s is None, not error.retry

        def fail() -> bool:
            return self._queue.fail(
                lease, error.problem, retry_in=wait, counts=counts, final=final, cost=error.cost
            )

        if not await self._patiently(fail):
            self.tally.lost += 1

    def _calm(self) -> None:
        self._trouble_since, self._pauses = 0.0, 0

    def _pause(self, error: Failed) -> None:
        """Begins nothing for a while; gives up when no answer came for `patience_s`."""
        now = time.monotonic()
        self._trouble_since = self._trouble_since or now
        if now < self._resume_at:  # the others of the same moment
            return
        if now - self._trouble_since > self._rules.patience_s:
            waited = f"{now - self._trouble_since:.0f} s without an answer"
            self._give_up(Failed(f"{error.problem} ({waited})"))
            return
        backoff = min(60.0, self._rules.backoff_s / 4 * 2**self._pauses * random.uniform(0.7, 1.3))
        pause = max(error.pause_s or 0.0, backoff)
        self._pauses += 1
        self._resume_at = now + pause
        self.tally.paused_s += pause

    def _give_up(self, error: GaiaError) -> None:
        self._error = self._error or error
        self._over.set()

    # ── Leases ──────────────────────────────────────────────────────────────────────────────────

    async def _beat(self) -> None:
        """Prolongs all leases, those of waiting results too, at a third of their time."""
        while True:
            await asyncio.sleep(self._rules.lease_s / 3)
            for lease in list(self._held.values()):
                if lease.receipt not in self._held:
                    continue
                with contextlib.suppress(QueueError):  # the next beat comes in time
                    seconds = self._rules.lease_s
                    held = await self._threads.run(self._queue.extend, lease, seconds)
                    if not held and lease in self._ready:  # not begun: nothing is wasted
                        self._ready.remove(lease)
                        self._held.pop(lease.receipt, None)
                        self._wanted.set()

    async def _give_back(self, lease: Lease) -> None:
        with contextlib.suppress(QueueError):  # then the lease runs out by itself
            if await self._threads.run(self._queue.release, lease):
                self.tally.released += 1

    async def _patiently(
        self, call: Callable[..., Any], *args: Any, threads: Threads | None = None
    ) -> Any:
        """A call of the queue, repeated for a while where it cannot be used: a full disk, a
        restart of its server."""
        begun, pause = time.monotonic(), 0.1
        while True:
            try:
                return await (threads or self._threads).run(call, *args)
            except (QueueError, StorageError):
                if self._ending or time.monotonic() - begun + pause > _QUEUE_PATIENCE_S:
                    raise
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    async def _end(self, feed: asyncio.Task, hurry: asyncio.Event) -> None:
        """Gives back what was not begun, waits for what runs, and gives back the rest."""
        self._ending = True
        feed.cancel()
        await asyncio.gather(feed, return_exceptions=True)
        if self._taking is not None:  # what it is just leasing is to go back too
            await asyncio.gather(self._taking, return_exceptions=True)
        waiting = list(self._ready)
        self._ready.clear()
        await asyncio.gather(*(self._drop(lease) for lease in waiting))
        if self._running:
            hurried = asyncio.create_task(hurry.wait())
            finished = asyncio.gather(*self._running, return_exceptions=True)
            await asyncio.wait(
                [finished, hurried], timeout=self._rules.grace_s,
                return_when=asyncio.FIRST_COMPLETED,
            )  # fmt: skip
            hurried.cancel()
            for task in list(self._running):
                task.cancel()
            await asyncio.gather(finished, hurried, return_exceptions=True)
        while self._settling:
            await asyncio.gather(*self._settling, return_exceptions=True)
        self.tally.running = 0

    async def _drop(self, lease: Lease) -> None:
        await self._give_back(lease)
        self._held.pop(lease.receipt, None)

"""Jobs that wait for rows of the engine: each holder of a key in turn, however much one asks for.

All of it runs on the event loop's thread. The engine is given as many samples as it has rows and
a few more, so that a row that ends finds the next one ready; all others wait here, where holders
take turns.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from gchat.serve.errors import ApiError, busy

_AHEAD = 2


class Job(Protocol):
    """Work for the engine."""

    samples: int
    """Rows that it takes."""

    def begin(self) -> None:
        """Gives it to the engine."""
        ...


class FairQueue:
    """Jobs of one engine.

    Args:
        slots: rows of the engine.
        longest: samples that may wait; where more would, each holder has a share of them.
    """

    def __init__(
        self, slots: int, longest: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._room, self._longest, self._clock = slots + _AHEAD, longest, clock
        self.slots = slots
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self.waiting = 0
        """Samples that wait."""
        self.working = 0
        """Samples that the engine has."""
        self._sample_s = 1.0  # a running mean

    def add(self, holder: str, jobs: list[Job]) -> None:
        """Takes all jobs of one request, or none.

        Raises:
            ApiError: 429 where the queue is full, 400 where they would never fit.
        """
        samples = sum(job.samples for job in jobs)
        if samples > self._longest + self._room:
            raise ApiError(
                400, f"the request asks for {samples} answers, and at most "
                f"{self._longest + self._room} may wait here; ask for fewer at once",
                code="too_many_answers",
            )  # fmt: skip
        ready = self._room - self.working if not self.waiting else 0
        more = samples - max(0, ready)
        mine = sum(job.samples for job in self._waiting.get(holder, ()))
        share = self._longest // len(self._waiting.keys() | {holder})
        # A holder who fills the queue leaves room for others: each has a share of its own.
        if self.waiting + more > self._longest and mine + more > share:
            ahead = (self.waiting + self.working) / self.slots
            raise busy("the server is busy; ask again later", min(60, ahead * self._sample_s))
        self._waiting.setdefault(holder, deque()).extend(jobs)
        self.waiting += samples
        self._begin()

    def leave(self, holder: str, job: Job) -> bool:
        """Takes a job out that has not begun; False where it has."""
        line = self._waiting.get(holder, ())
        if job not in line:
            return False
        line.remove(job)  # type: ignore[union-attr]
        self.waiting -= job.samples
        if not line:
            del self._waiting[holder]
        self._begin()  # the next may fit where this one did not
        return True

    def ended(self, samples: int, seconds: float) -> None:
        """Notes that samples have left the engine, each after so many seconds."""
        self.working -= samples
        self._sample_s += 0.1 * (seconds - self._sample_s)
        self._begin()

    def _begin(self) -> None:
        while self._waiting:
            holder, line = next(iter(self._waiting.items()))
            samples = line[0].samples
            # One that asks for more rows than there are goes when all are free.
            if self.working + samples > self._room and self.working:
                return
            job = line.popleft()
            self._waiting.move_to_end(holder)
            if not line:
                del self._waiting[holder]
            self.waiting -= samples
            self.working += samples
            job.begin()

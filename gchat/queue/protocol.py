"""A queue of work that loses nothing: its items, its leases, and the calls every backend answers.

An item is added once, leased for some seconds, and ends done or in the dead letter. A lease that
runs out, because its worker died, makes the item available again: each item is tried at least
once, and has one result. Only the holder of the newest receipt can end an item.

    waiting --lease--> leased --complete--> done
       ^                 |  |
       +-- fail, release-+  +-- attempts used up --> dead
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from gaia.errors import GaiaError

VERSION = 1
"""Version of what a queue keeps; a queue of another version is refused."""
ATTEMPTS = 5
"""Attempts of one item, the lost ones of dead workers included, before it is given up."""
AGE_S = 600.0
"""Seconds of waiting that weigh as much as one step of priority."""


class QueueError(GaiaError):
    """A queue that cannot be read or written."""

    exit_status = 1


@dataclass(frozen=True)
class Item:
    """A piece of work.

    Attributes:
        id: its name; an item of the same name is the same item.
        payload: JSON object with what is to be done.
        priority: larger is sooner. One that waits gains a step every `AGE_S` seconds, so that
            none waits for ever.
    """

    id: str
    payload: dict[str, Any]
    priority: float = 0.0


@dataclass(frozen=True)
class Lease:
    """An item lent to one worker.

    Attributes:
        item: what is to be done.
        receipt: proof of this very lease; the next one of the same item has another.
        attempt: 1 for the first.
        until: when it runs out, as Unix time by the queue's clock.
    """

    item: Item
    receipt: str
    attempt: int
    until: float


@dataclass(frozen=True)
class Result:
    """An item that is done. `number` grows by the order in which items were finished."""

    number: int
    id: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Dead:
    """An item that was given up, and the reason of its last attempt."""

    item: Item
    reason: str
    attempts: int


@dataclass(frozen=True)
class Counts:
    """Items by state. Those whose lease ran out count as waiting."""

    waiting: int = 0
    leased: int = 0
    done: int = 0
    dead: int = 0

    @property
    def total(self) -> int:
        """Items that were ever added."""
        return self.waiting + self.leased + self.done + self.dead

    @property
    def open(self) -> int:
        """Items that have not ended."""
        return self.waiting + self.leased


@dataclass(frozen=True)
class Facts:
    """Counts, rate, cost and failures of a queue."""

    counts: Counts
    recent: int
    """Items that were finished within the window asked about."""
    since_s: float
    """Seconds of that window in which the queue has been worked on."""
    cost: float
    """US dollars, of results and of failed attempts."""
    oldest_s: float
    """Seconds since the oldest item that still waits was added."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed attempts by reason."""
    workers: dict[str, int] = field(default_factory=dict)
    """Items that each worker holds."""


class Queue(Protocol):
    """Lends items to workers. Thread-safe, and safe for many processes."""

    url: str

    def add(self, items: Iterable[Item]) -> int:
        """Adds items whose ids are new and leaves the others alone; how many are new."""
        ...

    def lease(self, n: int, seconds: float, worker: str) -> list[Lease]:
        """Lends up to n items, the most urgent first."""
        ...

    def extend(self, lease: Lease, seconds: float) -> bool:
        """Prolongs a lease to so many seconds from now; False where it is no longer held."""
        ...

    def complete(self, lease: Lease, result: dict[str, Any]) -> bool:
        """Keeps the result and ends the item; False where the lease is no longer held.

        Again with the same receipt it is True and changes nothing.
        """
        ...

    def fail(
        self,
        lease: Lease,
        reason: str,
        *,
        retry_in: float = 0.0,
        counts: bool = True,
        final: bool = False,
        cost: float = 0.0,
    ) -> bool:
        """Ends an attempt without a result; False where the lease is no longer held.

        Args:
            lease: of the item.
            reason: for people; what stands before its first colon is what failures count by.
            retry_in: seconds until the item may be lent again.
            counts: it spends one of the item's attempts; the last one spent makes it dead.
            final: the item is dead at once.
            cost: US dollars that the attempt took.
        """
        ...

    def release(self, lease: Lease) -> bool:
        """Gives an item back untouched: another worker may have it at once."""
        ...

    def priority(self, where: Mapping[str, str], value: float) -> int:
        """Changes the priority of open items whose payload has these values; how many."""
        ...

    def counts(self) -> Counts:
        """Items by state."""
        ...

    def facts(self, window_s: float = 300.0) -> Facts:
        """Counts, rate, cost and failures."""
        ...

    def results(self, since: int = 0) -> Iterator[Result]:
        """Results whose number is above `since`, in order of their numbers."""
        ...

    def dead(self) -> Iterator[Dead]:
        """Items that were given up."""
        ...

    def revive(self, reason: str | None = None) -> int:
        """Makes dead items wait again, with all their attempts; all, or those of a reason."""
        ...

    def close(self) -> None:
        """Lets go of connections and files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def kind_of(reason: str) -> str:
    """The part of a reason that failures are counted by."""
    return " ".join(reason.partition(":")[0].split())[:80] or "unknown"


def cost_of(result: Mapping[str, Any]) -> float:
    """US dollars that a result says it took; 0 where it says nothing."""
    value = result.get("cost")
    return float(value) if isinstance(value, int | float) and value == value else 0.0


def matches(payload: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Tells whether a payload's fields have these values; a number is written as in JSON."""
    for name, wanted in where.items():
        value = payload.get(name)
        if value is None or (value if isinstance(value, str) else json.dumps(value)) != wanted:
            return False
    return True

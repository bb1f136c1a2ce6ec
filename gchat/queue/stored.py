"""A queue whose results lie in a store of objects: on a local disk, gs:// or s3://.

The object is written before the item is ended, so that a result outlives the queue's server; an
item whose worker died in between is ended by whoever leases it next, without being done again.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gchat.queue.base import Closing
from gchat.queue.protocol import (
    Counts,
    Dead,
    Facts,
    Item,
    Lease,
    Queue,
    QueueError,
    Result,
    cost_of,
)
from gchat.queue.store import Store


class StoredResults(Closing):
    """A queue and the store of its results.

    Args:
        queue: of the items.
        store: of their results.
    """

    def __init__(self, queue: Queue, store: Store) -> None:
        self.url, self._queue, self.store = queue.url, queue, store

    def add(self, items: Iterable[Item]) -> int:
        """Adds items whose ids are new; how many."""
        return self._queue.add(items)

    def lease(self, n: int, seconds: float, worker: str) -> list[Lease]:
        """Lends up to n items; those that have a result are ended instead."""
        leases = []
        for lease in self._queue.lease(n, seconds, worker):
            kept = self.store.get("results", lease.item.id) if lease.attempt > 1 else None
            if kept is None:
                leases.append(lease)
            else:
                self._queue.complete(lease, {"cost": cost_of(kept)})
        return leases

    def extend(self, lease: Lease, seconds: float) -> bool:
        """Prolongs a lease to so many seconds from now."""
        return self._queue.extend(lease, seconds)

    def complete(self, lease: Lease, result: dict[str, Any]) -> bool:
        """Writes the result where there is none, then ends the item."""
        self.store.put("results", lease.item.id, result)
        return self._queue.complete(lease, {"cost": cost_of(result)})

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
        """Ends an attempt without a result."""
        return self._queue.fail(
            lease, reason, retry_in=retry_in, counts=counts, final=final, cost=cost
        )

    def release(self, lease: Lease) -> bool:
        """Gives an item back untouched."""
        return self._queue.release(lease)

    def priority(self, where: Mapping[str, str], value: float) -> int:
        """Changes the priority of open items whose payload has these values."""
        return self._queue.priority(where, value)

    def counts(self) -> Counts:
        """Items by state."""
        return self._queue.counts()

    def facts(self, window_s: float = 300.0) -> Facts:
        """Counts, rate, cost and failures."""
        return self._queue.facts(window_s)

    def results(self, since: int = 0) -> Iterator[Result]:
        """Results from the store, in the order in which their items were ended."""
        for one in self._queue.results(since):
            kept = self.store.get("results", one.id)
            if kept is None:  # it was written before its item was ended
                problem = f"the result of {one.id!r} is not in {self.store.url}"
                raise QueueError(problem, "bring back the objects that were removed from there")
            yield Result(one.number, one.id, kept)

    def dead(self) -> Iterator[Dead]:
        """Items that were given up."""
        return self._queue.dead()

    def revive(self, reason: str | None = None) -> int:
        """Makes dead items wait again, with all their attempts."""
        return self._queue.revive(reason)

    def close(self) -> None:
        """Closes the queue."""
        self._queue.close()

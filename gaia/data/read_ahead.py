"""Results of slow reads by number: the last used are kept, and some are read before they are asked.

Not a ThreadPoolExecutor: Python joins its threads at exit, and one that waits for a bucket would
hold up a run that has failed already. Whoever waits for a result gets it or an error, also when
`close` comes in between: every result that was promised is in one set until it is there.
"""

import collections
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Generic, TypeVar

from gaia.storage import gcs

T = TypeVar("T")
_JOIN_S = 5.0  # a connection that is silent ends by itself, later


class ReadAhead(Generic[T]):
    """Calls `read(number)` once for each number that is wanted, at most `capacity` kept.

    Args:
        read: reads one item; called in the thread that wants it, or in a background thread.
        name: of the collection, for errors.
        capacity: results that are kept; the least recently used go first.
        threads: background threads, started when something is first read ahead.

    Attributes:
        stop: set when this is closed; `read` should end soon after.
    """

    def __init__(self, read: Callable[[int], T], *, name: str, capacity: int, threads: int) -> None:
        self.stop = threading.Event()
        self._read, self._name = read, name
        self._capacity, self._count = capacity, threads
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[int, Future[T]] = collections.OrderedDict()
        # Also those that were dropped from `_kept` while somebody waits for them.
        self._promised: set[Future[T]] = set()
        self._work: queue.SimpleQueue[tuple[int, Future[T]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def get(self, number: int) -> T:
        """One item, read in this thread unless it is there or being read.

        Raises:
            Stopped: this was closed, before or while it was waited for.
            Exception: what `read` raised, now or when it was read ahead.
        """
        with self._lock:
            future, is_new = self._claim(number)
        if is_new:
            self._carry_out(number, future)
        return future.result()

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begins to read items in the background; their errors are raised by `get`.

        Raises:
            Stopped: this was closed.
        """
        with self._lock:
            if not self._threads and not self.stop.is_set():
                self._start()
            for number in numbers:
                future, is_new = self._claim(number)
                if is_new:
                    self._work.put((number, future))

    def close(self) -> None:
        """Fails whatever is waited for, drops what is kept, and ends the threads."""
        with self._lock:
            self.stop.set()
            promised, self._promised = self._promised, set()
            self._kept.clear()
            threads, self._threads = self._threads, []
            for _ in threads:
                self._work.put(None)
        for future in promised:
            with contextlib.suppress(InvalidStateError):  # it came meanwhile
                future.set_exception(self._stopped())
        for thread in threads:
            thread.join(_JOIN_S)

    def _stopped(self) -> gcs.Stopped:
        return gcs.Stopped(f"{self._name} was closed", "")

    def _claim(self, number: int) -> tuple[Future[T], bool]:
        """The promise of an item, and True where the caller has to see to it; under the lock."""
        if self.stop.is_set():
            raise self._stopped()
        future = self._kept.get(number)
        if is_new := future is None:
            future = self._kept[number] = Future()
            self._promised.add(future)
        self._kept.move_to_end(number)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return future, is_new

    def _carry_out(self, number: int, future: Future[T]) -> None:
        try:
            result = self._read(number)
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):  # closed meanwhile
                future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                future.set_result(result)
        with self._lock:
            self._promised.discard(future)

    def _start(self) -> None:
        threads = [
            threading.Thread(target=self._run, name=f"gaia-shards-{i}", daemon=True)
            for i in range(self._count)
        ]
        for thread in threads:
            thread.start()
        self._threads = threads

    def _run(self) -> None:
        while (call := self._work.get()) is not None and not self.stop.is_set():
            self._carry_out(*call)

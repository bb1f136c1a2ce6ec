"""Blocking functions for an event loop, in daemon threads.

asyncio's own threads are joined at the end of a program; one that waits for an endpoint would hold
up Ctrl-C until the answer is there.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Runs functions in `count` daemon threads, each started by a call.

    Args:
        count: threads at most.
        name: of the threads, for people who debug.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._started = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """The function's value; cancelled, the thread goes on and its value is dropped."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            if self._started < self._count:
                self._started += 1
                name = f"{self._name}-{self._started}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        self._tasks.put((loop, future, function, args))
        return await future

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            loop, future, function, args = task
            value, error = None, None
            try:
                value = function(*args)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, future, value, error)
            del task, value, error, future

    def close(self) -> None:
        """Ends the threads after what they are at."""
        for _ in range(self._started):
            self._tasks.put(None)


def _settle(future: asyncio.Future, value: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):  # no future takes it
        future.set_exception(RuntimeError("StopIteration"))
    else:
        future.set_exception(error)


def in_threads(function: Callable[P, T], count: int) -> Callable[P, Awaitable[T]]:
    """The same function for `await`, in up to `count` daemon threads."""
    threads = Threads(count, getattr(function, "__name__", "work"))

    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await threads.run(lambda: function(*args, **kwargs))

    return call

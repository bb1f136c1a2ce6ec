"""Calls for several clouds or hosts at once. Daemon threads: Ctrl-C waits for none of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
# So many hosts of a slice at once: each is an ssh or an rsync of its own here.
HOSTS_AT_ONCE = 16


def in_parallel(calls: Sequence[Callable[[], None]]) -> None:
    """Runs every call in a thread of its own, and returns when all have ended.

    What a call raises is lost: it has to keep its result, or its error, itself.
    """
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    started = []
    for thread, call in zip(threads, calls, strict=True):
        try:
            thread.start()
            started.append(thread)
        except RuntimeError:
            with contextlib.suppress(Exception):
                call()  # no thread to be had: one after the other, then
    for thread in started:
        thread.join()


def on_hosts(count: int, call: Callable[[int], T]) -> list[T]:
    """Calls `call` for hosts 0 … count - 1, some at once; its results, or the first host's error.

    A slice of 64 hosts takes about as long as four, which matters at its price.
    """
    if count == 1:
        return [call(0)]
    results: dict[int, T] = {}
    errors: dict[int, Exception] = {}
    turn = threading.Semaphore(HOSTS_AT_ONCE)

    def one(index: int) -> None:
        with turn:
            try:
                results[index] = call(index)
            except Exception as error:
                errors[index] = error

    in_parallel([lambda i=i: one(i) for i in range(count)])
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(count)]

"""Finish the live runs at a normal exit, at an uncaught exception and at SIGTERM."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol


class Finishable(Protocol):
    """A run as the hooks end it."""

    def finish(self, status: Any = "finished") -> None:
        """Write everything and close."""

    def abandon(self) -> None:
        """Take no more records, in a forked child."""


_live: weakref.WeakSet[Any] = weakref.WeakSet()
_hooked = False
_finishing: set[Any] = set()  # runs whose finish() is under way, in any thread
_noted: list[int] = []  # signals that came meanwhile
_hooked_children: set[int] = set()  # ids of the processes whose multiprocessing exit is hooked


def live() -> Iterable[Any]:
    """Return the runs that this process records."""
    return list(_live)


def watch(run: Finishable) -> None:
    """Finish `run` however the process ends, except by kill -9."""
    global _hooked
    _live.add(run)
    _watch_multiprocessing()
    # The newest first: before the exit of a sink's package (W&B), which this run has just opened.
    atexit.unregister(_finish_all)
    atexit.register(_finish_all, "finished")
    if _hooked:
        return
    _hooked = True
    previous = sys.excepthook

    def crashed(kind: Any, value: Any, trace: Any) -> None:
        _finish_all("crashed")
        previous(kind, value, trace)

    sys.excepthook = crashed
    os.register_at_fork(after_in_child=_abandon_all)
    # A trainer with its own handler (for a last checkpoint) calls finish() itself.
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _watch_multiprocessing() -> None:
    """Hook the exit of a child of multiprocessing: it runs neither atexit nor excepthook."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is None or os.getpid() in _hooked_children:
        return
    _hooked_children.add(os.getpid())
    util.Finalize(None, _child_ends, exitpriority=100)


def _child_ends() -> None:
    kind, value, _ = sys.exc_info()  # Process._bootstrap calls this in its `finally`
    ended_well = kind is None or (kind is SystemExit and getattr(value, "code", 0) in (None, 0))
    _finish_all("finished" if ended_well else "crashed")


@contextlib.contextmanager
def finishing(run: Finishable) -> Iterator[None]:
    """Hold back SIGTERM while `run` is finished; afterwards the run is watched no longer."""
    _finishing.add(run)
    try:
        yield
    finally:
        _live.discard(run)
        _finishing.discard(run)
        if _noted and not _finishing:
            number = _noted[0]
            _noted.clear()
            os.kill(os.getpid(), number)


def _finish_all(status: str) -> None:
    for run in list(_live):
        run.finish(status)


def _abandon_all() -> None:
    for run in list(_live):
        run.abandon()
        _live.discard(run)
    _finishing.clear()
    _noted.clear()


def _terminated(number: int, frame: Any) -> None:
    if _finishing:  # which this handler interrupts: what is queued would be lost
        _noted.append(number)
        return
    _finish_all("stopped")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

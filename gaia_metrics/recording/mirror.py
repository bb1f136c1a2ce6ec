"""Mirrors of a run for people of other programs: `sinks=["wandb", "tensorboard"]`.

A mirror takes what the run folder takes, secrets hidden already, through a queue and a thread of
its own: that program's delays and errors stay there. It lies in RUN/mirrors/ and is never read back
by this package; the segments stay the truth.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from gaia.extras import install
from gaia_metrics.errors import MetricsError
from gaia_metrics.redaction import redact_text
from gaia_metrics.storage.folder import MIRRORS

if TYPE_CHECKING:
    from gaia_metrics.recording.opening import Opened

SINKS = ("wandb", "tensorboard")
MOST_WAITING = 200_000  # points in the queue: about 15 MB
FLUSH_S = 2.0


class Target(Protocol):
    """A run of the other program, opened; only the mirror's thread calls it."""

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Take the values of one `log()`, or a sample of the system."""

    def record(self, record: dict) -> None:
        """Take a text, histogram or alert."""

    def flush(self) -> None:
        """Hand what was taken to the kernel."""

    def close(self, status: str) -> None:
        """Close the run as finished, stopped or crashed."""


def check_sinks(names: Sequence[str], field: str = "sinks") -> tuple[str, ...]:
    """Return the names of the sinks, each once.

    Raises:
        MetricsError: a sink is unknown, or its package is not installed.
    """
    if isinstance(names, str):
        raise MetricsError(f"sinks={names!r} is no list", f"use sinks=[{names!r}]")
    for name in names:
        if name not in SINKS:
            raise MetricsError(f"{field}: {name!r} is unknown", f"use {' or '.join(SINKS)}")
        if not installed(name):
            raise MetricsError(f"{field}: {name} is not installed", install(name))
    return tuple(dict.fromkeys(names))


def installed(package: str) -> bool:
    """Tell whether a package can be imported; a folder `wandb/` of old runs is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def open_target(name: str, opened: Opened) -> Target:
    """Open the other program's run below RUN/mirrors. Raises whatever that program raises."""
    folder = opened.dir / MIRRORS
    folder.mkdir(exist_ok=True)
    if name == "wandb":
        from gaia_metrics.recording.mirror_wandb import WandbRun

        return WandbRun(folder, opened.info, opened.attempt)
    from gaia_metrics.recording.mirror_tensorboard import EventFile

    return EventFile(folder / name, opened.info, opened.attempt)


class Mirror:
    """A sink of the worker that feeds one target from a thread of its own.

    Args:
        name: "wandb" or "tensorboard".
        target: the opened run.
        warn: called as warn(key, problem, remedy); says each key once.
    """

    def __init__(self, name: str, target: Target, warn: Callable[[str, str, str], None]) -> None:
        self._name, self._target, self._warn = name, target, warn
        self._queue: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._points_in = self._points_out = 0  # each written by one thread
        self._status = "finished"
        self._thread = threading.Thread(target=self._run, name=f"gaia-metrics-{name}", daemon=True)
        self._thread.start()

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Queue one `log()` or a sample of the system."""
        self._put(len(values), (step, time_ns, values, system))

    def record(self, record: dict) -> None:
        """Queue a text, histogram or alert."""
        self._put(1 + len(record.get("text", "")) // 100, (record,))

    def flush(self, fsync: bool) -> None:
        """Nothing waits in this thread; the other one flushes every two seconds."""

    def end(self, status: str) -> None:
        """Let the thread close the target once the queue is empty."""
        self._status = status
        self._queue.put(None)

    def close(self, timeout: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._trouble("is not through yet", "what is missing there is in the run folder")

    def _put(self, points: int, item: tuple) -> None:
        if self._points_in - self._points_out > MOST_WAITING:
            self._trouble("is too slow: it lacks values", "they are in the run folder")
            return
        self._points_in += points
        self._queue.put((points, item))

    def _run(self) -> None:
        last_flush = time.monotonic()
        while True:
            try:
                entry = self._queue.get(timeout=FLUSH_S)
            except queue.Empty:
                entry = (0, ())
            if entry is None:
                break
            points, item = entry
            if item:
                self._try(self._target.record if len(item) == 1 else self._target.values, *item)
            self._points_out += points
            if time.monotonic() - last_flush > FLUSH_S:
                self._try(self._target.flush)
                last_flush = time.monotonic()
        self._try(self._target.close, self._status)

    def _try(self, call: Callable, *arguments: object) -> None:
        """Call the other program; whatever it raises is told of once, and the run goes on."""
        try:
            call(*arguments)
        except (Exception, SystemExit) as error:
            self._trouble(
                f"lacks a part ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
                "the run folder has all of it",
            )

    def _trouble(self, problem: str, remedy: str) -> None:
        said = redact_text(f"the mirror for {self._name} {problem}")
        self._warn(f"sink-{self._name}", said, remedy)

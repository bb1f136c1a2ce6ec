"""The background thread: takes what `log()` queued, waits for device arrays, writes segments.

`log()` only appends to a deque. Everything that can block, fail or cost time is here: device
arrays (converted once they are ready; a training step is never synchronised), disk, the derived
metrics.jsonl and the exporter's spool.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gaia_metrics.recording.conversion import (
    Barrier,
    Conversion,
    Deferred,
    all_ready,
    plain,
    ready,
)
from gaia_metrics.storage.jsonl import JsonlFile
from gaia_metrics.storage.segment_writer import SegmentWriter

TICK_S = 1.0
DEVICE_POLL_S = 0.05
STOP_SLICE_S = 0.25
CLOCK_JUMP_NS = 60 * 10**9
DEVICE_WAIT_S = 3.0  # at the end, for arrays that are not ready
# Backlog in points (a point costs about 65 bytes in the queue): beyond SOFT the producer yields
# half a millisecond per log(), beyond HARD (the disk hangs) values are dropped and counted.
SOFT_POINTS, HARD_POINTS = 200_000, 1_000_000
# What a disk that refuses may hold back in memory before records are dropped and counted.
MAX_UNWRITTEN = 32 << 20


class Sink(Protocol):
    """A taker of converted records beside the run folder: the OTLP spool, the watch for alerts."""

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Take one `log()`, or a sample of system values (where `system` is True)."""

    def record(self, record: dict) -> None:
        """Take a text, histogram or alert."""

    def flush(self, fsync: bool) -> None:
        """Called once per tick, after the segments were written."""


class Worker:
    """Owns the queue and the thread.

    Args:
        writer: the segments, or None where the folder cannot be written.
        jsonl: the derived file (process 0 only), or None.
        sinks: further takers of each record.
        warn: called as warn(key, problem, remedy); says each key once.
        on_tick: on_tick(self, final) is called about once a second from the thread, and at the
            end before the last write (heartbeat, system metrics).
        done: called from the thread once every file is closed.
        start: called from the thread once, after the first write.
    """

    def __init__(
        self,
        writer: SegmentWriter | None,
        jsonl: JsonlFile | None,
        sinks: list[Sink],
        warn: Callable[[str, str, str], None],
        on_tick: Callable[[Worker, bool], None],
        done: Callable[[], None],
        start: Callable[[], None],
    ) -> None:
        self.queue: deque[tuple] = deque()
        self.points_in = 0  # written by the producer
        self.points_out = 0  # written by the thread
        self.dropped = 0
        self.last_step = -1
        self.latest: dict[str, float] = {}  # the last value of each metric
        self.wake = threading.Event()
        self._writer, self._jsonl, self._sinks = writer, jsonl, sinks
        self._warn, self._on_tick, self._done = warn, on_tick, done
        self._start: Callable[[], None] | None = start
        self._conversion = Conversion(warn)
        # monotonic -> unix: a clock that jumps during the run cannot disorder the series
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._records = 0  # tells records of one name and step apart, within this attempt
        self._stop = False
        self._blocked = False  # the queue's head waits for a device
        self._thread = threading.Thread(target=self._run, name="gaia-metrics", daemon=True)
        self._thread.start()

    @property
    def devices(self) -> list[Any]:
        """Devices of the first device array that was logged."""
        return self._conversion.devices

    @property
    def alive(self) -> bool:
        """True while the thread takes records."""
        return self._thread.is_alive()

    def barrier(self, step: int, timeout: float) -> bool:
        """Wait until all that is queued now is on the disk and steps <= `step` have their line."""
        if self._writer is None or not self.alive:
            return False
        mark = Barrier(step)
        self.queue.append((mark, 0, None))
        self.wake.set()
        return mark.event.wait(timeout) and mark.ok

    def stop(self, timeout: float) -> bool:
        """Write everything, close the files, end the thread; False after `timeout` seconds."""
        self._stop = True
        self.wake.set()
        # In slices: a process that the system has frozen for a while did not have its time.
        for _ in range(max(1, round(timeout / STOP_SLICE_S))):
            self._thread.join(STOP_SLICE_S)
            if not self._thread.is_alive():
                return True
        return False

    @property
    def derived_is_stale(self) -> bool:
        """True where metrics.jsonl must be derived anew: a value came for a line far back."""
        return self._jsonl is not None and self._jsonl.stale

    def unix_ns(self, monotonic_ns: int) -> int:
        """Convert a monotonic reading of this process to unix time."""
        return monotonic_ns + self._offset_ns

    def _check_clock(self) -> None:
        jump = time.time_ns() - time.monotonic_ns() - self._offset_ns
        if abs(jump) > CLOCK_JUMP_NS:
            self._warn(
                "clock",
                f"this machine's clock jumped by {jump / 1e9:.0f} s; the run keeps the old time, "
                "so that its series stay in order",
                "set the clock by NTP; resume the run to take on the new time",
            )

    def _run(self) -> None:
        idle = False
        self.wake.set()  # the first turn comes at once
        while True:
            self.wake.wait(DEVICE_POLL_S if self._blocked else TICK_S)
            self.wake.clear()
            stopping = self._stop
            try:
                moved = self._drain(force=False)
                if stopping:
                    self._finish()
                    return
                self._write(keep_open=0 if idle and not moved else 3)
                self._begin()
                idle = not moved
                self._on_tick(self, False)
                self._check_clock()
            except Exception as error:  # the thread must outlive every bad value
                self._say_skipped(error)
                if stopping:  # what _finish could not do now it will not do again
                    return

    def _say_skipped(self, error: Exception) -> None:
        self._warn(
            f"worker:{type(error).__name__}",
            f"an internal error was skipped: {type(error).__name__}: {error}",
            "please report it; training is not affected",
        )

    @contextlib.contextmanager
    def _skipping(self) -> Iterator[None]:
        """Go on after an internal error: what comes behind it is written all the same."""
        try:
            yield
        except Exception as error:
            self._say_skipped(error)

    def _begin(self) -> None:
        """Call `start` once, after the first write: values never wait for it."""
        start, self._start = self._start, None
        if start is not None:
            try:
                start()
            except Exception as error:
                self._warn("start", f"the run's facts are incomplete: {error}", "")

    def _finish(self) -> None:
        deadline = time.monotonic() + DEVICE_WAIT_S
        while self.queue and time.monotonic() < deadline:
            if not self._drain(force=False):
                time.sleep(0.02)
        self._drain(force=True)
        self._write(keep_open=0, fsync=True)
        self._begin()
        with self._skipping():
            self._on_tick(self, True)
        self._write(keep_open=0, fsync=True)
        self._close()
        self._done()

    def _close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:  # `_write` has said why
            lost = self._writer.shed(0) if self._writer is not None else 0
            self.dropped += lost
            if self._jsonl is not None:
                self._jsonl.shed()  # it never holds what the segments do not
            self._warn(
                "lost",
                f"{lost} records are lost: the disk refused them until the run ended",
                "free space before the run is taken up again",
            )
        if self._jsonl is not None:
            with contextlib.suppress(OSError):
                self._jsonl.close()

    def _drain(self, force: bool) -> bool:
        """Take every queue head that is ready; True where something was taken."""
        moved, taken = False, 0
        queue, self._blocked = self.queue, False
        while queue:
            step, mono_ns, item = queue[0]
            if not force and not _is_ready(item):
                self._blocked = True
                break
            queue.popleft()  # before it is handled: one that fails must not stop those behind it
            try:
                if item is None:
                    self._pass_barrier(step)
                elif isinstance(item, Deferred):
                    self._take_deferred(step, mono_ns, item)
                else:
                    self.points_out += len(item)
                    moved, taken = True, taken + 1
                    self._take(step, mono_ns, item, force)
            except Exception as error:
                self.dropped += 1
                problem = f"a record was dropped: {type(error).__name__}: {error}"
                self._warn(f"record:{type(error).__name__}", problem[:300], "")
            if taken >= 4096:  # bounds the buffers and lets kill -9 lose little
                self._write(keep_open=3)
                taken = 0
        if not queue:
            self.points_out = self.points_in
        return moved

    def _take(self, step: Any, mono_ns: int, item: dict, force: bool) -> None:
        try:
            step = operator.index(step)
            if not 0 <= step < 1 << 62:
                raise ValueError(step)
        except (TypeError, ValueError):
            self._warn(
                "step", f"log(step={step!r}) was dropped", "step must be an integer from 0 on"
            )
            return
        values = self._conversion.numbers(item, force)
        if not values:
            return
        time_ns = self.unix_ns(mono_ns)
        if self._writer is not None:
            self._writer.values(step, time_ns, values)
        if self._jsonl is not None and not self._jsonl.add(step, time_ns, values):
            self._warn(
                "backwards",
                f"log(step={step}) came after step {self._jsonl.last}: steps should not go back",
                "pass resume_step=N to init() to take a run up again from step N",
            )
        self.last_step = max(self.last_step, step)
        self.latest.update(values)
        for sink in self._sinks:
            sink.values(step, time_ns, values, False)

    def _take_deferred(self, step: Any, mono_ns: int, item: Deferred) -> None:
        at = None if step is None else operator.index(step)  # None: the last step before it
        self.keep(item.make(item.value), at, self.unix_ns(mono_ns))

    def keep(self, record: dict, step: int | None = None, time_ns: int = 0) -> None:
        """Keep a text, histogram or alert, of the last step unless told (in the thread)."""
        record |= {
            "name": record["name"].encode("utf-8", "replace").decode(),  # no lone surrogates
            "step": max(0, self.last_step) if step is None else step,
            "time_ns": time_ns or self.unix_ns(time.monotonic_ns()),
            "seq": self._records,
        }
        self._records += 1
        if self._writer is not None:
            self._writer.json(record)
        for sink in self._sinks:
            sink.record(record)

    def system(self, values: dict[str, float]) -> None:
        """Keep a sample of system values (called from `on_tick`, in the thread)."""
        time_ns = self.unix_ns(time.monotonic_ns())
        if self._writer is not None:
            self._writer.values(self.last_step, time_ns, values, b"S")
        for sink in self._sinks:
            sink.values(self.last_step, time_ns, values, True)

    def _pass_barrier(self, mark: Barrier) -> None:
        try:
            mark.ok = self._write(keep_open=3, through=mark.step, fsync=True)
        finally:
            mark.event.set()

    def _write(self, keep_open: int, through: int = -1, fsync: bool = False) -> bool:
        """Write the segments, then the files derived from them; False where the disk refused."""
        done = True
        if self._writer is not None:
            try:
                self._writer.flush(fsync)
            except OSError as error:
                done = False
                lost = self._writer.shed(MAX_UNWRITTEN)
                self.dropped += lost
                if lost and self._jsonl is not None:
                    self._jsonl.shed()
                self._warn(
                    "disk",
                    f"metrics cannot be written: {error}",
                    "free space or make the folder writable; they are kept in memory until then",
                )
        if self._jsonl is not None and done:
            try:
                self._jsonl.write(through, keep_open)
                if fsync:
                    self._jsonl.fsync()
            except OSError as error:
                done = False
                self._warn("disk", f"metrics.jsonl cannot be written: {error}", "free space")
        for sink in self._sinks:
            with self._skipping():
                sink.flush(fsync)
        return done


def _is_ready(item: Any) -> bool:
    """Return True where handling an item of the queue waits for no device."""
    if item is None:  # a barrier
        return True
    if isinstance(item, Deferred):
        return ready(item.value)
    return plain(item) or all_ready(item)

"""Guards of a long run: stopping on request, bad losses, and steps that never end.

`StopRequest` records a signal for the loop, `LossGuard` judges each step's loss, `Watchdog` ends
a process that hangs.
"""

import contextlib
import faulthandler
import gc
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gaia.errors import ConfigError
from gaia.interrupt import hearing

HUNG = 124
"""Exit status of a process that its watchdog ended, as timeout(1) has it."""

LAG = 8
"""Steps between a loss and the first step it helps to judge: those in between may be in flight."""

_LEAST_LOSSES = 8  # fewer make no running median


@dataclass(frozen=True)
class GuardConfig:
    """Policy for a bad step (a loss that is not finite, or spikes) and for one that hangs."""

    policy: Literal["stop", "skip", "rollback"] = "stop"
    """stop: end the run. skip: leave that update out, decided on the device. rollback: reload the
    newest checkpoint and go on without that batch."""
    spike_factor: float = 0.0
    """A loss above this times the running median is bad too; 0 turns that off, as by default: a
    run that learns its text by heart leaps by any factor (gchat/EXPERIMENTS.md)."""
    spike_window: int = 64
    """Losses in the running median."""
    max_rollbacks: int = 3
    """Limit of rollbacks in the whole run; one more ends it."""
    max_skips: int = 8
    """Limit of skipped updates in a row; one more ends the run."""
    hang_minutes: float = 30.0
    """Minutes without a finished step after which all stacks are dumped and the process ends;
    four times that while programs are compiled or a checkpoint is written; 0 turns it off."""

    def check(self, in_flight: int) -> None:
        """Raises ConfigError where a value cannot work."""
        if self.spike_factor and self.spike_factor <= 1:
            raise ConfigError(
                f"guards.spike_factor is {self.spike_factor}", "use a factor above 1, or 0 for off"
            )
        if self.spike_factor and in_flight >= LAG:
            raise ConfigError(
                f"run.in_flight is {in_flight} with guards.spike_factor", f"use at most {LAG - 1}"
            )


_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Records the first SIGTERM, SIGHUP or Ctrl-C as a request that the loop reads between steps.

    A second Ctrl-C interrupts at once. Use as a context manager; the previous handlers return
    on exit.

    Args:
        ask: called in the signal handler, so it may only set something.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self.signal: str | None = None
        self._again: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        self._hearing = hearing(self._handle, *_STOPPING)
        self._hearing.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._again is not None:
            self._again.cancel()
        self._hearing.__exit__(None, None, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None and number == signal.SIGINT:
            # What is raised in a callback of the garbage collector is printed and lost.
            self._again = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
            self._again.start()
            if _is_collecting(frame):
                return
            raise KeyboardInterrupt
        self.signal = name
        self._ask()
        # Not print(): the handler may interrupt a print of the main thread.
        with contextlib.suppress(OSError):  # SIGHUP says that the terminal is gone
            sys.stderr.write(
                f"\n{name}: finishing this step, then saving (Ctrl-C again to abort)\n"
            )


def _is_collecting(frame: FrameType | None) -> bool:
    """Tells whether a frame runs within a callback of the garbage collector, as JAX installs."""
    callbacks = [getattr(callback, "__code__", None) for callback in gc.callbacks]
    while frame is not None:
        if frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False


def keep_if_finite(
    new: Any, old: Any, loss: jax.Array, grad_norm: jax.Array, limit: jax.Array
) -> Any:
    """The state after an update, or before it where the step is bad; decided on the device.

    Integers (step and schedule counters) count on either way: the step has taken its batch.

    Args:
        new: state after the update.
        old: the same tree before it.
        loss: fp32 scalar, as is grad_norm.
        limit: largest loss accepted; infinity for no limit.
    """
    is_good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (loss <= limit)

    def choose(after: jax.Array, before: jax.Array) -> jax.Array:
        if not jnp.issubdtype(after.dtype, jnp.inexact):
            return after
        return jnp.where(is_good, after, before)

    return jax.tree.map(choose, new, old)


class BadStep(Exception):
    """A step whose loss is not finite, or spikes.

    Attributes:
        step: number of finished updates with it.
        batch: index of the batch it took.
        reason: for people.
    """

    def __init__(self, step: int, batch: int, reason: str) -> None:
        super().__init__(f"{reason} at step {step} (batch {batch})")
        self.step, self.batch, self.reason = step, batch, reason


class LossGuard:
    """Judges losses, and keeps what a resumed run must know to judge alike.

    A step is compared with the median of the newest `spike_window` good losses that lie LAG steps
    before it or more: all of them are known when the step begins, whenever the host reads them, so
    that a resumed run sees the same limits.

    Args:
        config: policy and limits.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped_batches: set[int] = set()
        """Batches that rollbacks have taken out of the order."""
        self._losses: dict[int, float] = {}
        self._skips = 0

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {
            "losses": [[step, loss] for step, loss in self._losses.items()],
            "skipped_batches": sorted(self.skipped_batches),
            "skips": self._skips,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a checkpoint's state; batches skipped since then stay skipped."""
        self._losses = {int(step): float(loss) for step, loss in state.get("losses", [])}
        # Checkpoints before version 0.2 call them passed_over.
        self.skipped_batches |= set(state.get("skipped_batches", state.get("passed_over", [])))
        self._skips = int(state.get("skips", 0))

    def limit(self, step: int) -> np.float32:
        """The largest loss accepted of a step; infinity where there is no limit."""
        if not self.config.spike_factor:
            return np.float32(np.inf)
        known = [v for s, v in self._losses.items() if s <= step - LAG][-self.config.spike_window :]
        if len(known) < _LEAST_LOSSES:
            return np.float32(np.inf)
        return np.float32(self.config.spike_factor * statistics.median(known))

    def judge(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Says what is wrong with a finished step, or None; call it once for each, in order."""
        limit = float(self.limit(step))
        if not math.isfinite(loss):
            return f"train/loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"train/grad_norm is {grad_norm}"
        if loss > limit:
            typical = limit / self.config.spike_factor
            factor = f"{self.config.spike_factor:g} times the running median {typical:.4g}"
            return f"train/loss is {loss:.4f}, above {factor}"
        self._losses[step] = loss
        if len(self._losses) > LAG + self.config.spike_window:
            del self._losses[min(self._losses)]
        self._skips = 0
        return None

    def may_skip(self) -> bool:
        """Counts a skipped update; False where there were too many in a row."""
        self._skips += 1
        return self._skips <= self.config.max_skips

    def may_roll_back(self, batch: int) -> bool:
        """Takes a batch out of the order; False where there were too many rollbacks."""
        self.skipped_batches.add(batch)
        return len(self.skipped_batches) <= self.config.max_rollbacks

    def position(self, step: int) -> int:
        """Index of the batch that follows `step` finished steps."""
        batch = step
        for skipped in sorted(self.skipped_batches):
            if skipped <= batch:
                batch += 1
        return batch


class Watchdog:
    """Ends the process, with the stacks of all threads on stderr, when nothing moves any more.

    A Python thread watches and says what hung. Should some C code hold the interpreter lock, that
    thread does not run either: then faulthandler's own thread dumps the stacks a little later.
    Use as a context manager.

    Args:
        minutes: without a sign of life; 0 never ends anything.
        at_end: called (for ten seconds at most) before the process ends.
        clock: seconds.
    """

    def __init__(
        self,
        minutes: float,
        at_end: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._at_end, self._clock = 60 * minutes, at_end, clock
        self._stopped = threading.Event()
        self.alive("starting", patience=4)

    def alive(self, doing: str, *, patience: float = 1.0) -> None:
        """Records progress; the work that begins now may take `patience` times the limit."""
        self._mark = (self._clock(), doing, self._seconds * patience)

    @contextlib.contextmanager
    def slow(self, doing: str):
        """Allows the work inside four times the limit, because it compiles or writes much."""
        before = self._mark
        self.alive(doing, patience=4)
        try:
            yield
        finally:
            self.alive(before[1])

    def problem(self) -> str | None:
        """Describes the work that hangs; returns None while nothing does."""
        since, doing, allowed = self._mark
        took = self._clock() - since
        if not self._seconds or took <= allowed:
            return None
        return f"no step finished for {took / 60:.3g} minutes (guards.hang_minutes); {doing}"

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, name="gaia-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        pause = min(5.0, self._seconds / 10)
        while not self._stopped.wait(pause):
            if problem := self.problem():
                self._end(problem)
            _, _, allowed = self._mark
            # Re-armed here, so that it goes off only when this thread cannot run.
            with contextlib.suppress(Exception):  # stderr may be no file, under a test runner
                faulthandler.dump_traceback_later(1.5 * allowed + 60, exit=True)

    def _end(self, problem: str) -> None:
        sys.stderr.write(f"hang: {problem}; the stacks of all threads:\n")
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback(all_threads=True)
        thread = threading.Thread(target=self._at_end, daemon=True)
        thread.start()
        thread.join(10.0)
        os._exit(HUNG)

"""Traces of chosen training steps, made by `jax.profiler` (open them in xprof or Perfetto)."""

from pathlib import Path
from typing import Any

import jax

from gaia.errors import ConfigError


class StepTrace:
    """Traces steps FIRST to LAST, both included, into a folder.

    Args:
        steps: `FIRST:LAST`, or one step; None traces nothing.
        folder: where the trace is written, once its last step has finished.

    Raises:
        ConfigError: `steps` is not such a range.
    """

    def __init__(self, steps: str | None, folder: Path) -> None:
        self.folder, self.running = folder, False
        self.first, self.last = _range(steps) if steps else (0, -1)

    def before(self, step: int, in_flight: Any) -> None:
        """Starts or ends the trace where that is due; `in_flight` are arrays of the step before.

        Waiting for them keeps what was dispatched before out of the trace, and all of it in.
        """
        if self.running and step > self.last:
            self.stop(in_flight)
        elif not self.running and self.first <= step <= self.last:
            jax.block_until_ready(in_flight)
            jax.profiler.start_trace(str(self.folder))
            self.running, self.first = True, self.last + 1  # once per run

    def stop(self, in_flight: Any) -> None:
        """Ends a trace that is running; does nothing otherwise."""
        if self.running:
            jax.block_until_ready(in_flight)
            jax.profiler.stop_trace()
            self.running = False
            print(f"profile of steps up to {self.last}: {self.folder}", flush=True)


def _range(steps: str) -> tuple[int, int]:
    parts = steps.split(":")
    if not (len(parts) <= 2 and all(part.isdigit() for part in parts)):
        raise ConfigError(f"run.profile is {steps!r}", "use FIRST:LAST, e.g. 10:13")
    first, last = int(parts[0]), int(parts[-1])
    if not 1 <= first <= last:
        raise ConfigError(f"run.profile is {steps!r}", "steps count from 1, the first one first")
    return first, last

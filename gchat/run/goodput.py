"""Goodput of a run: the share of its wall time that went into training steps which count.

Wall time is all that passed since the run was opened first: compiling, evaluating, saving, dying
and the time until somebody resumed it. Steps that a kill or a rollback undid are in no log, so
each step counts once however often it was trained.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Series = Mapping[str, Sequence[tuple[int, float]]]


class Goodput(NamedTuple):
    """The two times behind the share."""

    step_seconds: float
    wall_seconds: float
    restarts: int
    """Processes after the first one."""

    @property
    def share(self) -> float:
        """Step time over wall time."""
        return min(1.0, self.step_seconds / self.wall_seconds)


def goodput(
    series: Series,
    attempts: Sequence[Mapping[str, Any]],
    *,
    began: float,
    ended: float,
    idle: float = 0.0,
) -> Goodput | None:
    """Reckons goodput from recorded times; None before the first step.

    Args:
        series: of the log, `{name: [(step, value), …]}`.
        attempts: of run.json: `resume_step`, `started` (seconds since 1970), `host` and `pid` each.
        began: seconds since 1970 at which the first attempt opened the run.
        ended: the same of now.
        idle: seconds of these for which the run was finished and nobody wanted it to go on.
    """
    times = dict(series.get("perf/step_ms", ()))
    began = min([began, *(float(a["started"]) for a in attempts)])
    wall = ended - began - idle
    if not times or wall <= 0:
        return None
    # The first step of each attempt waits for the compiler; what is above the usual is no work.
    typical = statistics.median(times.values())
    firsts = {int(a["resume_step"]) + 1 for a in attempts} | {min(times)}
    skipped = {step for step, value in series.get("train/skipped", ()) if value}
    milliseconds = sum(
        min(took, typical) if step in firsts else took
        for step, took in times.items()
        if step not in skipped
    )
    processes = [(a.get("host"), a.get("pid")) for a in attempts]
    return Goodput(milliseconds / 1e3, wall, sum(a != b for a, b in pairwise(processes)))

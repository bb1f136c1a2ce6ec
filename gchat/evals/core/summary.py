"""From right and wrong answers to CORE: accuracies, centred on their baselines, and intervals.

CORE is the plain mean of the centred accuracies of its tasks. Intervals are of 95%:

- accuracy: Wilson's score interval (1927), which holds for few items, and for 0 or all right;
- centred accuracy: the same interval, centred as the accuracy is;
- CORE: normal, with the variance of each centred accuracy from Agresti and Coull's estimate (1998,
  two right and two wrong answers more), tasks taken as independent.

They say how far the score could be moved by other items of the same kind, not by another training
run (nanochat's repeated runs spread by .016).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gchat.evals.core.tasks import TASKS, VERSIONS, Task

Z = 1.959964
"""Quantile of the normal distribution for 95%."""


class Interval(NamedTuple):
    """Ends of an interval of 95%."""

    low: float
    high: float


class Count(NamedTuple):
    """Answers to a task."""

    right: int
    of: int

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return self.right / self.of

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the accuracy."""
        n, z2 = self.of, Z * Z
        middle = (self.right + z2 / 2) / (n + z2)
        half = Z / (n + z2) * math.sqrt(self.right * (n - self.right) / n + z2 / 4)
        return Interval(max(0.0, middle - half), min(1.0, middle + half))

    @property
    def variance(self) -> float:
        """Variance of the accuracy, positive also where all answers are right or wrong."""
        n = self.of + Z * Z
        share = (self.right + Z * Z / 2) / n
        return share * (1 - share) / n


def core(accuracies: Mapping[str, float], version: str) -> float:
    """Mean of the centred accuracies of the tasks that are there."""
    there = [task for task in TASKS if task.name in accuracies]
    return math.fsum(t.centred(accuracies[t.name], version) for t in there) / len(there)


def core_interval(counts: Mapping[str, Count], version: str) -> Interval:
    """Interval of `core` over the same tasks."""
    there = [task for task in TASKS if task.name in counts]
    variance = sum(counts[t.name].variance * _slope(t, version) ** 2 for t in there)
    half = Z * math.sqrt(variance) / len(there)
    middle = core({name: count.accuracy for name, count in counts.items()}, version)
    return Interval(middle - half, middle + half)


def _slope(task: Task, version: str) -> float:
    return task.centred(1.0, version) - task.centred(0.0, version)


def summary(counts: Mapping[str, Count]) -> dict[str, Any]:
    """All figures of an evaluation, for JSON; tasks without answers are left out."""
    counts = {name: count for name, count in counts.items() if count.of}
    tasks: dict[str, Any] = {}
    for task in TASKS:
        if task.name not in counts:
            continue
        count = counts[task.name]
        row: dict[str, Any] = {
            "items": count.of,
            "right": count.right,
            "accuracy": count.accuracy,
            "accuracy_interval": list(count.interval),
        }
        for version in VERSIONS:
            ends = [task.centred(end, version) for end in count.interval]
            row[f"centred_{version}"] = task.centred(count.accuracy, version)
            row[f"centred_{version}_interval"] = ends
        tasks[task.name] = row
    result: dict[str, Any] = {"tasks_scored": len(tasks), "tasks_of_core": len(TASKS)}
    accuracies = {name: count.accuracy for name, count in counts.items()}
    for version in VERSIONS:
        result[version] = core(accuracies, version)
        result[f"{version}_interval"] = list(core_interval(counts, version))
    return result | {"tasks": tasks}


def table(figures: Mapping[str, Any], missing: Sequence[str] = ()) -> str:
    """A summary for people."""
    head = f"{'task':<32} {'items':>6} {'accuracy':>9} {'95% interval':>16}"
    lines = [head + f" {'centred v1':>11} {'95% interval':>16} {'centred v2':>11}"]
    for name, row in figures["tasks"].items():
        lines.append(
            f"{name:<32} {row['items']:>6} {row['accuracy']:>9.4f} "
            f"{_ends(row['accuracy_interval']):>16} {row['centred_core_v1']:>11.4f} "
            f"{_ends(row['centred_core_v1_interval']):>16} {row['centred_core_v2']:>11.4f}"
        )
    scored, of = figures["tasks_scored"], figures["tasks_of_core"]
    for version in VERSIONS:
        over = "" if scored == of else f"  (mean over {scored} of {of} tasks: no CORE score)"
        title = {"core_v1": "CORE v1 (nanochat)", "core_v2": "CORE v2 (DCLM)"}[version]
        ends = _ends(figures[f"{version}_interval"])
        lines.append(f"{title:<32} {figures[version]:>16.4f} {ends:>16}{over}")
    if missing:
        lines.append(f"not in the bundle: {', '.join(missing)}")
    return "\n".join(lines)


def _ends(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} {interval[1]:.4f}"

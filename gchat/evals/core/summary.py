"""From right and wrong answers to CORE: accuracies, centred on their baselines, and intervals.

CORE is the plain mean of the centred accuracies of its tasks; intervals are those of
`gchat.evals.counts` (nanochat's repeated training runs spread by .016).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gchat.evals.core.tasks import TASKS, VERSIONS
from gchat.evals.counts import Count, Interval, mean_interval


def core(accuracies: Mapping[str, float], version: str) -> float:
    """Mean of the centred accuracies of the tasks that are there."""
    there = [task for task in TASKS if task.name in accuracies]
    return math.fsum(t.centred(accuracies[t.name], version) for t in there) / len(there)


def core_interval(counts: Mapping[str, Count], version: str) -> Interval:
    """Interval of `core` over the same tasks."""
    there = [task for task in TASKS if task.name in counts]
    middle = core({name: count.accuracy for name, count in counts.items()}, version)
    return mean_interval(((counts[t.name], t.baseline(version)) for t in there), middle)


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
        name = score_name(result, version)
        result[name] = core(accuracies, version)
        result[f"{name}_interval"] = list(core_interval(counts, version))
    return result | {"tasks": tasks}


def score_name(figures: Mapping[str, Any], version: str) -> str:
    """Key of the mean: a part of the tasks gives no CORE, so nothing may take it for one."""
    whole = figures["tasks_scored"] == figures["tasks_of_core"]
    return version if whole else f"partial_{version}"


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
        name = score_name(figures, version)
        over = "" if scored == of else f"  (mean over {scored} of {of} tasks: no CORE score)"
        title = {"core_v1": "CORE v1 (nanochat)", "core_v2": "CORE v2 (DCLM)"}[version]
        ends = _ends(figures[f"{name}_interval"])
        lines.append(f"{title:<32} {figures[name]:>16.4f} {ends:>16}{over}")
    if missing:
        lines.append(f"not in the bundle: {', '.join(missing)}")
    return "\n".join(lines)


def _ends(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} {interval[1]:.4f}"

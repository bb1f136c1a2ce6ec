"""From outcomes to ChatCORE: accuracies with intervals, pass@k, the mean of centred accuracies.

ChatCORE is the plain mean of (accuracy - baseline) / (1 - baseline) over its five tasks; other
tasks stand in the table beside it. Intervals: `gchat.evals.counts`; of pass@k the normal one over
the items' estimates.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gchat.evals.chat.entries import CHATCORE
from gchat.evals.counts import Count, Interval, Z, mean_interval
from gchat.evals.results import Record
from gchat.tasks.task import Task

_KS = (1, 2, 5, 10, 25, 50, 100)


def pass_at(k: int, samples: int, right: int) -> float:
    """Chance that one of `k` answers is right, unbiased, from `samples` of which `right` are.

    1 - C(samples - right, k) / C(samples, k): Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: there are fewer samples than k.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def summary(tasks: Sequence[Task], records: Iterable[Record]) -> dict[str, Any]:
    """All figures of an evaluation, for JSON; tasks without outcomes are left out."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    rows = {task.name: _row(task, by_task[task.name]) for task in tasks if task.name in by_task}
    of_core = [task for task in tasks if task.name in CHATCORE and task.name in rows]
    result: dict[str, Any] = {
        "tasks_scored": len(of_core), "tasks_of_chatcore": len(CHATCORE),
        "chatcore": None, "chatcore_interval": None,
    }  # fmt: skip
    name = score_name(result)
    if of_core:
        middle = math.fsum(rows[task.name]["centred"] for task in of_core) / len(of_core)
        counts = [
            (Count(rows[t.name]["right"], rows[t.name]["items"]), t.baseline) for t in of_core
        ]
        result[name] = middle
        result[f"{name}_interval"] = list(mean_interval(counts, middle))
    return result | {"tasks": rows}


def score_name(figures: Mapping[str, Any]) -> str:
    """Key of the mean: a part of the tasks gives no ChatCORE, so nothing may take it for one."""
    whole = figures["tasks_scored"] == figures["tasks_of_chatcore"]
    return "chatcore" if whole else "partial_chatcore"


def _row(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    count = Count(math.fsum(record["grade"] for record in records), len(records))
    row: dict[str, Any] = {
        "kind": task.kind,
        "items": count.of,
        "right": count.right,
        "accuracy": count.accuracy,
        "accuracy_interval": list(count.interval),
        "baseline": task.baseline,
        "centred": task.centred(count.accuracy),
        "centred_interval": [task.centred(end) for end in count.interval],
    }
    if task.kind == "generate":
        row["unfinished"] = sum(_unfinished(record) for record in records)
        row["pass_at"] = _passes(records)
    return row


def _unfinished(record: Record) -> bool:
    """True where an answer met the limit of its tokens, or could not be begun."""
    return any(answer["finish"] == "length" for answer in record.get("answers", ())) or (
        "error" in record
    )


def _passes(records: Sequence[Record]) -> dict[str, Any]:
    grades = [record["grades"] for record in records if "grades" in record]
    samples = min((len(each) for each in grades), default=0)
    if samples < 2:
        return {}
    passes: dict[str, Any] = {}
    for k in sorted({*(k for k in _KS if k <= samples), samples}):
        # An item whose question could not be asked has no sample that is right.
        each = [pass_at(k, len(one), round(sum(one))) for one in grades]
        each += [0.0] * (len(records) - len(grades))
        passes[str(k)] = {"value": sum(each) / len(each), "interval": list(_normal(each))}
    return passes


def _normal(values: Sequence[float]) -> Interval:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    half = Z * math.sqrt(variance / len(values))
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """A summary as values for the log: `eval/chatcore`, `eval/chat/TASK` (accuracy).

    Of a part of the tasks `eval/partial_chatcore`.
    """
    values = {f"eval/chat/{name}": row["accuracy"] for name, row in figures["tasks"].items()}
    name = score_name(figures)
    if figures.get(name) is not None:
        values[f"eval/{name}"] = figures[name]
    return values


def table(figures: Mapping[str, Any]) -> str:
    """A summary for people."""
    head = f"{'task':<20} {'items':>6} {'accuracy':>9} {'95% interval':>16} {'baseline':>9}"
    lines = [head + f" {'centred':>8} {'95% interval':>16}"]
    for name, row in figures["tasks"].items():
        lines.append(
            f"{name:<20} {row['items']:>6} {row['accuracy']:>9.4f} "
            f"{_ends(row['accuracy_interval']):>16} {row['baseline']:>9.2f} {row['centred']:>8.4f} "
            f"{_ends(row['centred_interval']):>16}"
        )
        for k, passed in row.get("pass_at", {}).items():
            lines.append(
                f"{'  pass@' + k:<20} {'':>6} {passed['value']:>9.4f} "
                f"{_ends(passed['interval']):>16}"
            )
    name = score_name(figures)
    if figures.get(name) is not None:
        scored, of = figures["tasks_scored"], figures["tasks_of_chatcore"]
        over = "" if scored == of else f"  (mean over {scored} of {of} tasks: no ChatCORE score)"
        ends = _ends(figures[f"{name}_interval"])
        lines.append(f"{'ChatCORE':<20} {figures[name]:>52.4f} {ends:>16}{over}")
    for name, row in figures["tasks"].items():
        if row.get("unfinished"):
            lines.append(f"{name}: {row['unfinished']} answers met the limit of tokens")
    return "\n".join(lines)


def _ends(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} {interval[1]:.4f}"

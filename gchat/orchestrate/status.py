"""The state of the work for people and programs, and a plan before it runs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gchat.evals.progress_line import clock
from gchat.orchestrate import choice
from gchat.orchestrate.plan import Plan, Workload
from gchat.orchestrate.runner import LOGS
from gchat.orchestrate.store import Row, Store


def facts(store: Store, folder: Path, aging: float) -> dict[str, Any]:
    """All workloads with their states, and the newest turns, for JSON."""
    rows, now = store.rows(), time.time()
    turns = [
        {
            "id": one["id"],
            "workload": one["workload"],
            "command": json.loads(one["command"]),
            "began": one["began"],
            "seconds": round((one["ended"] or now) - one["began"], 1),
            "outcome": one["outcome"],
            "result": json.loads(one["result"]) if one["result"] else None,
            "memory": json.loads(one["memory"]) if one["memory"] else None,
        }
        for one in store.turns(20)
    ]
    return {
        "folder": str(folder),
        "workloads": [_workload(row, rows, now, aging, folder) for row in rows],
        "turns": turns,
    }


def _workload(
    row: Row, rows: Sequence[Row], now: float, aging: float, folder: Path
) -> dict[str, Any]:
    ready = choice.may_run(row, rows)
    return {
        "name": row.work.name,
        "state": row.state,
        "ready": ready,
        "blocked": choice.blocked(row, rows),
        "priority": row.work.priority,
        "urgency": round(choice.urgency(row, now, aging), 3) if ready else None,
        "again_in_s": max(0.0, round(row.not_before - now, 1)) if ready else None,
        "turns": row.turns,
        "runs": row.runs,
        "failures": row.failures,
        "lost": row.lost,
        "seconds": round(row.seconds, 1),
        "message": row.message,
        "log": str(folder / LOGS / f"{row.work.name}.log"),
    }


def table(facts: dict[str, Any]) -> str:
    """A table of the workloads, and the turn that runs."""
    head = ("workload", "state", "urgency", "turns", "failed", "time", "")
    rows: list[tuple[str, ...]] = [head]
    for one in facts["workloads"]:
        urgency = "" if one["urgency"] is None else f"{one['urgency']:.2f}"
        note = one["blocked"] or one["message"]
        if one["again_in_s"]:
            note += f"; again in {clock(one['again_in_s'])}"
        failed = str(one["failures"] + one["lost"])
        rows.append((one["name"], one["state"], urgency, str(one["turns"]), failed,
                     clock(one["seconds"]), note))  # fmt: skip
    lines = _aligned(rows)
    running = [turn for turn in facts["turns"] if turn["outcome"] is None]
    for turn in running:
        log = next(o["log"] for o in facts["workloads"] if o["name"] == turn["workload"])
        lines.append(f"running: {turn['workload']} for {clock(turn['seconds'])}; log {log}")
    return "\n".join(lines)


def planned(plan: Plan) -> str:
    """The workloads of a plan in the order of their first turns, with their commands."""
    rows: list[tuple[str, ...]] = [
        ("workload", "priority", "turn", "limit", "waits for", "command")
    ]
    for work in in_order(plan.workloads):
        waits = [*work.after, *([f"each turn of {work.each}"] if work.each else [])]
        times = [clock(t) if t is not None else "-" for t in (work.slice_s, work.limit_s)]
        rows.append((work.name, f"{work.priority:g}", *times, ", ".join(waits) or "-",
                     " ".join(work.command)))  # fmt: skip
    return "\n".join(_aligned(rows))


def in_order(workloads: Sequence[Workload]) -> list[Workload]:
    """Workloads in the order of their first turns, were each done in one."""
    left, order = list(workloads), list[Workload]()
    while left:
        names = {one.name for one in left}
        free = [one for one in left if not names & {*one.after, one.each or ""}]
        # What follows another's turn comes before others of its priority.
        chosen = max(free, key=lambda one: (one.priority, one.each is not None, -left.index(one)))
        order.append(chosen)
        left.remove(chosen)
    return order


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]

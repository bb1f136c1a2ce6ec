"""The node list: time left and money spent, from the clouds or the last look. Needs no typer."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from typing import Any

from gml.cli.terminal import emit, table
from gml.clock import service_clock
from gml.config import home_folder
from gml.durations import format_duration
from gml.model import Node
from gml.store import Store

CACHE = "ls.json"
HEAD = ("ID", "TYPE", "PROVIDER", "ZONE", "STATE", "LEFT", "SPENT", "$/H", "NOTE")
NOTES = {
    "orphan": "no record here (made elsewhere, or its file was lost)",
    "lost": "recorded here, gone there",
    "half-made": "a create was interrupted; `gml reap` clears it",
    "busy": "another gml is working on it",
}


def row(node: Node, now: float) -> dict[str, Any]:
    """One node as `gml ls --json` shows it. Times in seconds, money in US dollars."""
    cost = node.cost(now)
    return {
        "id": node.id,
        "type": node.sku,
        "provider": node.provider,
        "zone": node.zone,
        "strategy": node.strategy,
        "state": node.state or node.phase,
        "left_s": None if node.deadline is None else round(node.deadline - now),
        "deadline": node.deadline,
        "provider_limit": node.limit,
        "spent_usd": None if cost is None else round(cost, 4),
        "usd_per_hour": node.price,
        "spot": node.spot,
        "hosts": [h.address for h in node.hosts],
        "note": node.note,
    }


def show(nodes: list[Node], problems: list[str], now: float, as_json: bool, age: float = 0) -> None:
    """Prints the list; overdue and flagged nodes say so."""
    rows = [row(n, now) for n in nodes]
    if as_json:
        emit({"nodes": rows, "problems": problems, "age_s": round(age, 1)})
        return
    if rows:
        table([_cells(r) for r in rows], HEAD)
        total = sum(r["spent_usd"] or 0 for r in rows)
        rate = sum(r["usd_per_hour"] or 0 for r in rows if r["spent_usd"] is not None)
        count = "1 node" if len(rows) == 1 else f"{len(rows)} nodes"
        print(f"\n{count}, ${total:.2f} so far, ${rate:.2f}/h")
    else:
        print("no nodes")
    if age > 1:
        print(f"(as of {format_duration(age)} ago; `gml ls --refresh` looks again)")
    for problem in problems:
        print(f"gml: could not look everywhere: {problem}", file=sys.stderr)


def _cells(r: dict[str, Any]) -> list[Any]:
    left = "no end" if r["left_s"] is None else format_duration(r["left_s"])
    note = NOTES.get(r["note"], r["note"])
    if r["left_s"] is not None and r["left_s"] < 0:
        left, note = "OVERDUE", note or "run `gml reap`"
    return [
        str(r["id"]),
        str(r["type"]),
        r["provider"],
        r["zone"],
        r["state"] + (" spot" if r["spot"] else ""),
        left,
        "?" if r["spent_usd"] is None else f"${r['spent_usd']:.2f}",
        "?" if r["usd_per_hour"] is None else f"{r['usd_per_hour']:.2f}",
        note,
    ]


def save(store: Store, nodes: list[Node], problems: list[str], now: float) -> None:
    """Keeps a live look for `gml ls --cached`."""
    value: dict[str, Any] = {"at": now, "clock_ahead_s": service_clock.ahead_s}
    value |= {"nodes": [dataclasses.asdict(n) for n in nodes], "problems": problems}
    with contextlib.suppress(OSError):  # a disk that is full or read-only hides no machine
        store.write_json(CACHE, value)


def fast_path(arguments: list[str]) -> bool:
    """`gml ls --cached [--json]` without loading the command line library; False if not that."""
    if "--cached" not in arguments or set(arguments) - {"--cached", "--json"}:
        return False
    show_cached("--json" in arguments)
    return True


def last_known_time(store: Store) -> float:
    """Unix seconds, without what our clock was ahead of the services' at the last look."""
    ahead = store.read_json(CACHE).get("clock_ahead_s", 0.0)
    return time.time() - (ahead if isinstance(ahead, (int, float)) else 0.0)


def show_cached(as_json: bool) -> None:
    """The last look, or the local records where there was none."""
    store = Store(home_folder())
    cached = store.read_json(CACHE)
    now = last_known_time(store)
    try:
        nodes = [Node.from_dict(n) for n in cached["nodes"]]
        age, problems = now - float(cached["at"]), [str(p) for p in cached["problems"]]
        # What was made or deleted here since then is known without asking anybody.
        records = {n.id: n for n in store.all()}
        nodes = [n for n in nodes if n.id in records or n.note == "orphan"]
        nodes += [records[i] for i in records.keys() - {n.id for n in nodes}]
    except (KeyError, TypeError, ValueError):
        nodes, age, problems = store.all(), 0.0, []
    show(nodes, problems, now, as_json, age)

"""The next workload: the highest priority among those that may run, raised by every hour waited."""

from collections.abc import Sequence

from gchat.orchestrate.store import Row


def may_run(row: Row, rows: Sequence[Row]) -> bool:
    """Tells whether a workload waits for nothing but its turn, and for the end of a pause."""
    if row.state != "waiting":
        return False
    by_name = {one.work.name: one for one in rows}
    if any(by_name[name].state != "done" for name in row.work.after if name in by_name):
        return False
    each = by_name.get(row.work.each or "")
    return each is None or each.turns > row.covered


def blocked(row: Row, rows: Sequence[Row]) -> str:
    """Reason for which a waiting workload can never run as things are; empty where it may."""
    if row.state != "waiting":
        return ""
    over = {one.work.name: one.state for one in rows if one.state in ("failed", "stopped")}
    return next((f"{name} has {over[name]}" if over[name] == "failed" else f"{name} is stopped"
                 for name in row.work.after if name in over), "")  # fmt: skip


def urgency(row: Row, now: float, aging: float) -> float:
    """Priority, with what waiting has added.

    Args:
        row: a waiting workload.
        now: seconds since 1970.
        aging: priority that an hour of waiting adds.
    """
    return row.work.priority + aging * max(0.0, now - row.since) / 3600


def choose(rows: Sequence[Row], now: float, aging: float) -> tuple[Row | None, float | None]:
    """The workload whose turn it is.

    Returns:
        It, or None; and then the seconds until one may be tried again, or None where none will.
    """
    ready = [row for row in rows if may_run(row, rows)]
    now_ready = [row for row in ready if row.not_before <= now]
    if not now_ready:
        return None, min((row.not_before - now for row in ready), default=None)

    def order(row: Row) -> tuple[float, bool, float, int]:
        # What follows another's turn comes before that one's next turn, at equal priority.
        return -urgency(row, now, aging), row.work.each is None, row.since, row.place

    return min(now_ready, key=order), None

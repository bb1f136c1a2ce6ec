"""The state of a queue, as one object and as lines for people."""

from typing import Any

from gchat.queue.protocol import Queue


def status(queue: Queue, window_s: float = 300.0) -> dict[str, Any]:
    """The state of a queue as JSON values; nothing in it is changed.

    Args:
        queue: to look at.
        window_s: seconds back from now over which the rate is taken.
    """
    facts = queue.facts(window_s)
    counts = facts.counts
    rate = facts.recent / facts.since_s if facts.recent and facts.since_s > 0 else 0.0
    ended = counts.done or 1
    return {
        "queue": queue.url,
        "waiting": counts.waiting,
        "leased": counts.leased,
        "done": counts.done,
        "dead": counts.dead,
        "total": counts.total,
        "rate_per_s": round(rate, 4),
        "eta_s": 0.0 if not counts.open else round(counts.open / rate, 1) if rate else None,
        "oldest_waiting_s": round(facts.oldest_s, 1),
        "cost": round(facts.cost, 6),
        "cost_per_done": round(facts.cost / ended, 8),
        "cost_left": round(facts.cost / ended * counts.open, 6) if counts.done else None,
        "failures": facts.failures,
        "workers": facts.workers,
    }


def lines(state: dict[str, Any]) -> list[str]:
    """The same for people."""
    share = state["done"] / state["total"] if state["total"] else 0.0
    first = (
        f"{state['queue']}: {state['done']:,} of {state['total']:,} done ({share:.1%}), "
        f"{state['waiting']:,} wait, {state['leased']:,} in work, {state['dead']:,} given up"
    )
    eta = "done" if state["eta_s"] == 0.0 else "no rate yet"
    if state["eta_s"]:
        eta = f"{duration(state['eta_s'])} left"
    second = f"  {state['rate_per_s']:,.2f} items/s, {eta}"
    if state["waiting"]:
        second += f"; the oldest has waited {duration(state['oldest_waiting_s'])}"
    made = [first, second]
    if state["cost"]:
        left = "" if state["cost_left"] is None else f", about ${state['cost_left']:,.2f} to go"
        made.append(f"  ${state['cost']:,.4f} so far, ${state['cost_per_done']:,.6f} an item{left}")
    if state["failures"]:
        told = ", ".join(f"{n:,} {kind}" for kind, n in _largest(state["failures"], 8))
        made.append(f"  failed attempts: {told}")
    if state["workers"]:
        held = ", ".join(f"{name} {n:,}" for name, n in _largest(state["workers"], 6))
        made.append(f"  {len(state['workers'])} workers hold: {held}")
    if state["dead"]:
        made.append("  items that were given up: gchat synth dead QUEUE")
    return made


def _largest(counts: dict[str, int], n: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:n]


def duration(seconds: float) -> str:
    """A time span with its two largest units: 3 d 4 h, 5 min 10 s."""
    left = round(seconds)
    parts = []
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])

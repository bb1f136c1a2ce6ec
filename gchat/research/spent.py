"""Costs of trainings: tokens, FLOPs and seconds, and whether seconds of two can be compared."""

import statistics
from collections.abc import Sequence
from typing import Literal

from gchat.research.cells import Result

Axis = Literal["tokens", "flops", "time"]
CLOSE = {"tokens": 0.01, "flops": 0.01, "time": 0.05}
"""Difference below which two branches spend the same on an axis."""
Pair = tuple[Result, Result]
"""Results of the first branch and of another, of one seed."""


def of(result: Result, axis: Axis) -> float:
    """Tokens, FLOPs, or seconds of training behind its starts.

    What a training spends on starting (it compiles) is the same for any length, and long ones do
    not feel it.
    """
    if axis == "time":
        return result.seconds - result.start_seconds
    return result.tokens if axis == "tokens" else result.flops


def middle(results: Sequence[Result], axis: Axis) -> float:
    """Median of what the finished trainings spent; 0 where none finished."""
    return statistics.median([of(r, axis) for r in results if r.status == "done"] or [0.0])


def pairs(base: Sequence[Result], results: Sequence[Result]) -> list[Pair]:
    """The seeds that ended in both branches."""
    return [
        (one, other)
        for one, other in zip(base, results, strict=True)
        if one.status == other.status == "done"
    ]


def share(
    base: Sequence[Result], results: Sequence[Result], axis: Axis, *, per_token: bool = False
) -> float | None:
    """The share that a branch spends of what the first one does, the median over their seeds.

    Seconds of two machines, or of two versions of JAX, say nothing of each other: such pairs are
    left out of an axis of time.

    Returns:
        None where no pair is left.
    """
    shares = []
    for one, other in pairs(base, results):
        theirs, ours = of(one, axis), of(other, axis)
        if per_token and one.tokens and other.tokens:
            theirs, ours = theirs / one.tokens, ours / other.tokens
        if theirs and ours and not (axis == "time" and elsewhere(one, other)):
            shares.append(ours / theirs)
    return statistics.median(shares) if shares else None


def elsewhere(one: Result, other: Result) -> str:
    """A phrase on the machines and versions of two results; empty where they are the same.

    Lines of an earlier version do not say all of it, and what one of the two lacks tells nothing.
    """
    return ", ".join(
        f"{name} {one.machine[name]} and {other.machine[name]}"
        for name in one.machine
        if name in other.machine and one.machine[name] != other.machine[name]
    )


def said_elsewhere(base: Sequence[Result], results: Sequence[Result]) -> str:
    """A phrase on the seeds that two machines or versions trained; empty where there are none."""
    seeds: dict[str, list[int]] = {}
    for one, other in pairs(base, results):
        if how := elsewhere(one, other):
            seeds.setdefault(how, []).append(other.seed)
    return "; ".join(
        f"NOT THE SAME MACHINE: {how} (seed{'s' * (len(of_how) > 1)} {', '.join(map(str, of_how))})"
        for how, of_how in seeds.items()
    )


def why_unknown(base: Sequence[Result], results: Sequence[Result], axis: Axis) -> str:
    """A phrase on why `share` is None."""
    if not pairs(base, results):
        return "no seed ended in both"
    return (axis == "time" and said_elsewhere(base, results)) or "its cost was not measured"

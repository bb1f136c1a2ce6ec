"""Histograms of weights, gradients and activations, as OTLP exponential histograms.

Buckets are (base^i, base^(i+1)] with base = 2^(2^-scale): no range has to be chosen beforehand.
Source: the OpenTelemetry metrics data model, "ExponentialHistogram".
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

MAX_BUCKETS = 80
MAX_SCALE = 4
NEAR_ZERO = 1e-12  # right edge of a bucket that holds zeros alone


def summarize(values: Any) -> dict:
    """Reduce values to count, sum, min, max and exponential buckets; `nonfinite` counts the rest.

    Args:
        values: any nesting of numbers, or an array of any shape (numpy, jax).
    """
    if hasattr(values, "__array__"):
        return _of_array(values)
    numbers = [float(v) for v in values]
    finite = [v for v in numbers if math.isfinite(v)]
    return _finish(
        finite,
        len(numbers) - len(finite),
        Counter(_exponent(v) for v in finite if v > 0),
        Counter(_exponent(-v) for v in finite if v < 0),
    )


def _exponent(value: float) -> int:
    return math.ceil(math.log2(value) * 2**MAX_SCALE) - 1


def _of_array(values: Any) -> dict:
    import numpy as np

    flat = np.asarray(values).astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]

    def buckets(side: Any) -> Counter:
        index = np.ceil(np.log2(side) * 2**MAX_SCALE).astype(np.int64) - 1
        keys, counts = np.unique(index, return_counts=True)
        return Counter(dict(zip(keys.tolist(), counts.tolist(), strict=True)))

    return _finish(
        finite, len(flat) - len(finite), buckets(finite[finite > 0]), buckets(-finite[finite < 0])
    )


def _finish(finite: Any, nonfinite: int, positive: Counter, negative: Counter) -> dict:
    scale = MAX_SCALE
    while any(c and max(c) - min(c) >= MAX_BUCKETS for c in (positive, negative)):
        positive, negative, scale = _halve(positive), _halve(negative), scale - 1
    some = len(finite) > 0
    return {
        "count": len(finite),
        "nonfinite": nonfinite,
        "sum": float(sum(finite)) if isinstance(finite, list) else float(finite.sum()),
        "min": float(min(finite)) if some else 0.0,
        "max": float(max(finite)) if some else 0.0,
        "scale": scale,
        "zero_count": len(finite) - sum(positive.values()) - sum(negative.values()),
        "positive": _dense(positive),
        "negative": _dense(negative),
    }


def of_buckets(edges: Sequence[float], counts: Sequence[float]) -> dict:
    """Turn plain buckets into a record: each count goes to where the middle of its bucket lies.

    Sum, minimum and maximum are estimates, from the middles and the outer edges of what is filled.

    Args:
        edges: in ascending order, one more than counts.
        counts: of the values between each two edges; rounded.
    """
    # Around zero it is zero: that is where `edges` puts them, and half-way it would have no sign.
    middles = [0.0 if a < 0 < b else (a + b) / 2 for a, b in itertools.pairwise(edges)]
    filled = [(m, round(n)) for m, n in zip(middles, counts, strict=True) if round(n) > 0]
    positive, negative = Counter(), Counter()
    for middle, count in filled:
        if middle > NEAR_ZERO:
            positive[_exponent(middle)] += count
        elif middle < -NEAR_ZERO:
            negative[_exponent(-middle)] += count
    record = _finish([m for m, _ in filled], 0, positive, negative)
    total = sum(count for _, count in filled)
    inside = [i for i, n in enumerate(counts) if round(n) > 0]
    return record | {
        "count": total,
        "sum": float(sum(middle * count for middle, count in filled)),
        "min": float(edges[inside[0]]) if inside else 0.0,
        "max": float(edges[inside[-1] + 1]) if inside else 0.0,
        "zero_count": total - sum(positive.values()) - sum(negative.values()),
    }


def edges(record: dict) -> tuple[list[float], list[int]]:
    """Turn a record's exponential buckets into plain ones, from the lowest to the highest.

    Returns:
        Edges in ascending order, one more than counts; the counts between them, whose sum is the
        record's `count`. Zeros lie in a bucket around zero.
    """
    (low, negative), (high, positive) = record["negative"], record["positive"]
    below = [-_edge(record["scale"], low + i) for i in range(len(negative), -1, -1)]
    above = [_edge(record["scale"], high + i) for i in range(len(positive) + 1)]
    below, above = below if negative else [], above if positive else []
    zeros = record["zero_count"]
    if not below and not above:
        return [0.0, NEAR_ZERO], [zeros]
    if not zeros and not (below and above):
        return below + above, [*reversed(negative), *positive]
    below, above = below or [-above[0]], above or [-below[-1]]
    return below + above, [*reversed(negative), zeros, *positive]


def _edge(scale: int, index: int) -> float:
    """Compute base^index, kept in the range of a float."""
    return 2.0 ** min(max(index * 2.0**-scale, -1074.0), 1023.9999)


def _halve(counts: Counter) -> Counter:
    """Join neighbouring buckets: one scale coarser."""
    merged: Counter = Counter()
    for index, count in counts.items():
        merged[index >> 1] += count
    return merged


def _dense(counts: Counter) -> tuple[int, list[int]]:
    if not counts:
        return 0, []
    low = min(counts)
    return low, [counts.get(i, 0) for i in range(low, max(counts) + 1)]

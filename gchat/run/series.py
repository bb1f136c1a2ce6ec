"""Curves of a run, read from metrics.jsonl without jax."""

import json
from pathlib import Path

import numpy as np

Series = dict[str, list[tuple[int, float]]]


def read_series(path: Path) -> Series:
    """metrics.jsonl as `{name: [(step, value), …]}`; text and non-finite values are left out, and
    a last line without an end: a kill or a full disk tore it, or it is just being written."""
    series: Series = {}
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    for line in whole.splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                series.setdefault(name, []).append((record["step"], float(value)))
    return series


def smooth(values: list[float]) -> np.ndarray:
    """Mean over a centred window of a thirtieth of the run, narrower at its ends.

    An average of what came before would lag: drawn above a falling loss, it looks like another run.
    """
    loss = np.asarray(values, np.float64)
    known = np.isfinite(loss)
    half = len(loss) // 60
    at = np.arange(len(loss))
    reach = np.minimum(half, np.minimum(at, at[::-1]))
    # Sums up to each step: a window is the difference of two; skipped steps (NaN) count nowhere.
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, loss, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    total = sums[at + reach + 1] - sums[at - reach]
    return total / np.maximum(counts[at + reach + 1] - counts[at - reach], 1)

"""The calls of the page: /api/… -> JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gaia_metrics.config import flatten
from gaia_metrics.errors import MetricsError
from gaia_metrics.query import Source, comparison

Query = dict[str, list[str]]
MOST_RUNS = 5000  # whose configs are read for one field


def calls(source: Source) -> dict[str, Callable[[Query], Any]]:
    """Return the functions by path; each takes the parsed query."""
    return {
        "/api/runs": lambda q: source.runs(),
        "/api/metrics": lambda q: _metric_names(source, q["run"]),
        "/api/series": lambda q: _series(source, q),
        "/api/system": lambda q: {run: _by_metric(source.system(run)) for run in q["run"]},
        "/api/texts": lambda q: source.texts(q["run"][0], q.get("kind", ["text"])[0]),
        "/api/histograms": lambda q: source.histograms(q["run"][0]),
        "/api/run": lambda q: _details(source, q["run"][0]),
        "/api/fields": lambda q: _fields(source, q["run"]),
        "/api/field": lambda q: _field(source, q["name"][0]),
        "/api/compare": lambda q: comparison(source, q["run"]),
    }


def _metric_names(source: Source, runs: list[str]) -> list[str]:
    return sorted({name for run in runs for name in source.metric_names(run)})


def _details(source: Source, run: str) -> dict:
    """Facts of one run, its config as dotted names, and its last values."""
    facts = source.details(run)
    return facts | {"config": flatten(facts.get("config", {})), "metrics": source.metrics(run)}


def _fields(source: Source, runs: list[str]) -> list[str]:
    """Names of the config fields of the given runs."""
    return sorted({name for run in runs for name in flatten(source.config(run))})


def _field(source: Source, name: str) -> dict[str, str]:
    """Values of one config field, by run; `depth` finds `model.depth` too."""
    values = {}
    for row in source.runs()[:MOST_RUNS]:
        try:
            flat = flatten(source.config(row["run"]))
        except MetricsError:  # a damaged folder
            continue
        matching = (value for key, value in flat.items() if key.endswith(f".{name}"))
        value = flat.get(name, next(matching, None))
        if value is not None:
            values[row["run"]] = value
    return values


def _series(source: Source, query: Query) -> dict:
    """Return {metric: {run: {x, y, low, high}}}: arrays, so that uPlot takes them as they are."""
    columns = source.series(
        query["run"],
        query["metric"],
        query.get("x", ["step"])[0],
        int(query.get("points", ["1000"])[0]),
    )
    out: dict[str, dict[str, dict[str, list]]] = {}
    keys = ("run", "metric", "x", "value", "low", "high")
    for run, metric, x, value, low, high in zip(*(columns[k] for k in keys), strict=True):
        line = out.setdefault(metric, {}).setdefault(run, {"x": [], "y": [], "low": [], "high": []})
        line["x"].append(shown(x))
        line["y"].append(shown(value))
        line["low"].append(shown(low))
        line["high"].append(shown(high))
    return out


def _by_metric(columns: dict) -> dict:
    out: dict[str, dict[str, list]] = {}
    for metric, x, value in zip(columns["metric"], columns["x"], columns["value"], strict=True):
        line = out.setdefault(metric, {"x": [], "y": []})
        line["x"].append(x)
        line["y"].append(shown(value))
    return out


def shown(value: float | None) -> float | None:
    """Round to seven digits, more than a screen shows; None (a gap) for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")


def finite(value: Any) -> Any:
    """Replace what JSON cannot hold by None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

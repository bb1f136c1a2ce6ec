"""Runs in folders, queried with DuckDB. Needs the `ui` extra (numpy, pyarrow, duckdb).

A run that has ended is compacted once to metrics/compact.parquet, which any tool reads; the
segments stay the truth.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from gaia_metrics import names
from gaia_metrics.errors import MetricsError
from gaia_metrics.reading.local_run import LocalRun
from gaia_metrics.reading.selection import check_points, one
from gaia_metrics.reading.table import constant
from gaia_metrics.storage import folder

Columns = dict[str, Any]
NO_RUNS = ("metrics", "mirrors", "checkpoints")  # folders of a run with many files and no runs

_X_SQL = {
    "step": "step::DOUBLE",
    "time": "time - min(time) OVER (PARTITION BY run)",
}

_SERIES = """
WITH v AS (SELECT run, metric, step, time, value FROM data
           WHERE kind = 'values' AND list_contains($metrics, metric)),
x AS ({x}),
b AS (SELECT *, CASE WHEN $points = 0 THEN step::DOUBLE ELSE
        least($points - 1,
          floor((x - min(x) OVER w) * $points / greatest(max(x) OVER w - min(x) OVER w, 1e-9)))
      END AS bucket FROM x WINDOW w AS (PARTITION BY run))
SELECT run, metric, avg(x) AS x, avg(value) AS value, min(value) AS low, max(value) AS high,
       max(step) AS step
FROM b GROUP BY run, metric, bucket ORDER BY run, metric, x
"""


class LocalSource:
    """Runs below a folder. Safe to call from several threads.

    Args:
        root: a run folder, or a folder with run folders in it (up to four levels); runs may lie in
            folders of a run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[Path, LocalRun] = {}
        self._places: dict[str, Path] = {}  # of the keys that were asked for
        self._lock = threading.RLock()

    def _find(self) -> list[LocalRun]:
        with self._lock:
            paths = _run_folders(self.root, 4)
            self._runs = {path: self._runs.get(path) or LocalRun(path) for path in paths}
            return list(self._runs.values())

    def run(self, key: str) -> LocalRun:
        """A run by id, folder name or name (the newest). Raises MetricsError where none is."""
        with self._lock:
            known = self._runs.get(self._places.get(key, self.root))
            if known is None or key not in _keys(known):
                known = self._look_up(key)
                self._places[key] = known.path
            return known

    def _look_up(self, key: str) -> LocalRun:
        runs = self._find()
        matching = [run for run in runs if key in _keys(run)[:2]]
        matching = matching or [run for run in runs if key in _keys(run)]
        if not matching:
            raise MetricsError(f"run={key!r} is not in {self.root}", "see `gaia-metrics ls`")
        if len(matching) == 1:
            return matching[0]
        return max(matching, key=_started)

    def runs(self) -> list[dict]:
        """Summaries, newest first. A folder whose run.json is broken is listed as such."""
        out = []
        for run in self._find():
            try:
                out.append(run.summary())
            except MetricsError as error:
                out.append(_damaged(run.path, str(error)))
        return sorted(out, key=lambda r: -r["started"])

    def refresh_when_due(self) -> None:
        """Do nothing: what is read lies here."""

    def delete(self, run: str) -> str:
        """Delete what was recorded of a run, checkpoints excepted; returns the run folder.

        Args:
            run: its path, or an id, folder name or name that no other run has.

        Raises MetricsError where a process is recording it, or where it could be another one.
        """
        path = Path(one(self.runs(), run)["path"])
        folder.delete(path)
        with self._lock:
            self._runs.pop(path, None)
        return str(path)

    def config(self, run: str) -> dict:
        """The run's config, as it was given."""
        return self.run(run).info.get("config", {})

    def metrics(self, run: str) -> list[dict]:
        """Metric names with count, last value, least and greatest finite value."""
        sql = """SELECT metric, count(*) AS count, arg_max(value, step) AS last,
                   max(step) AS last_step, min(value) FILTER (isfinite(value)) AS min,
                   max(value) FILTER (isfinite(value)) AS max
                 FROM data WHERE kind = 'values' GROUP BY metric ORDER BY metric"""
        columns = self._query(sql, [run], {})
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def metric_names(self, run: str) -> list[str]:
        """Names of the run's training metrics."""
        with self._lock:
            return self.run(run).metric_names()

    def details(self, run: str) -> dict:
        """Everything that run.json says of a run, and its folder."""
        known = self.run(run)
        return known.info | {"path": str(known.path)}

    def histograms(self, run: str) -> list[dict]:
        """Histogram records, oldest first: step, name, count, sum, min, max and buckets."""
        with self._lock:
            records = self.run(run).records("histogram")
        return [{"step": r.step, "time": r.time_ns / 1e9} | r.data for r in records]

    def series(
        self, runs: Sequence[str], metrics: Sequence[str], x: str = "step", points: int = 0
    ) -> Columns:
        """Values as columns run, metric, x, value, low, high, step; sorted by run, metric, x.

        Args:
            runs: ids or names.
            metrics: metric names.
            x: "step", "time" (seconds since the run's first value), "tokens" or "flops".
            points: at most so many buckets per series (average, least, greatest); 0 gives all.
        """
        check_points(points)
        return self._query(
            _SERIES.format(x=_x_sql(x)), runs, {"metrics": list(metrics), "points": points}
        )

    def system(self, run: str, points: int = 500) -> Columns:
        """System values as columns metric, x (seconds since the first sample), value."""
        check_points(points, least=1)
        sql = """WITH x AS (SELECT metric, value, time - min(time) OVER () AS x
                   FROM data WHERE kind = 'system'),
                 b AS (SELECT *, least($points - 1,
                     floor(x * $points / greatest(max(x) OVER (), 1e-9))) AS bucket
                   FROM x)
                 SELECT metric, avg(x) AS x, avg(value) AS value FROM b
                 GROUP BY metric, bucket ORDER BY metric, x"""
        return self._query(sql, [run], {"points": points})

    def texts(self, run: str, kind: str = "text") -> list[dict]:
        """Texts ("text") or alerts ("alert"), oldest first."""
        return [
            {"step": r.step, "time": r.time_ns / 1e9, "name": r.data["name"],
             "text": r.data["text"], "level": r.data.get("level", "info")}
            for r in self.run(run).records(kind)
        ]  # fmt: skip

    def _query(self, sql: str, runs: Iterable[str], parameters: dict) -> Columns:
        tables = []
        for key in runs:
            with self._lock:
                run = self.run(key)
                table = run.table()
            name = constant(run.info["id"], len(table))
            tables.append(table.add_column(0, "run", name))
        if not tables:
            raise MetricsError("no runs were given", "see `gaia-metrics ls`")
        with duckdb.connect() as database:
            database.register("data", pa.concat_tables(tables).unify_dictionaries())
            used = {k: v for k, v in parameters.items() if f"${k}" in sql}
            return database.sql(sql, params=used).to_arrow_table().to_pydict()


def _keys(run: LocalRun) -> list[str]:
    """Return a run's id, folder name and name; only the folder name where run.json is damaged."""
    try:
        info = run.info
    except MetricsError:
        return [run.path.name]
    if not info:  # deleted meanwhile
        return []
    return [info.get("id", ""), run.path.name, info.get("name", "")]


def _started(run: LocalRun) -> float:
    try:
        return run.summary()["started"]
    except MetricsError:
        return -1.0  # before all that are whole


def _damaged(path: Path, problem: str) -> dict:
    row = {"run": path.name, "name": path.name, "project": "", "status": "damaged"}
    row |= {"last_step": -1, "loss": None, "bpb": None, "attempts": 0, "started": 0.0}
    return row | {"updated": 0.0, "commit": "", "host": "", "path": str(path), "problem": problem}


def _x_sql(x: str) -> str:
    if x in _X_SQL:
        return f"SELECT *, {_X_SQL[x]} AS x FROM v"
    counter = names.X_AXES.get(x)
    if counter is None:
        raise MetricsError(f"x={x!r}", f"use one of {', '.join(names.X_AXES)}")
    # The counter's value at the step, or at the last step before it.
    return f"""SELECT v.*, c.value AS x FROM v ASOF JOIN
        (SELECT run, step, value FROM data WHERE kind = 'values' AND metric = '{counter}') c
        ON v.run = c.run AND v.step >= c.step"""


def _run_folders(root: Path, depth: int) -> list[Path]:
    """Find the runs at and below `root`; a run's later stages (sft) lie in folders of it."""
    is_run = (root / "run.json").exists()
    here = [root] if is_run else []
    if depth == 0:
        return here
    try:
        with os.scandir(root) as entries:
            below = sorted(e.name for e in entries if _may_hold_runs(e, is_run))
    except OSError:
        return here
    return here + [run for name in below for run in _run_folders(root / name, depth - 1)]


def _may_hold_runs(entry: os.DirEntry[str], in_run: bool) -> bool:
    """Tell whether to look into a folder; links within a run lead out of it, or round in it."""
    if in_run and entry.name in NO_RUNS:
        return False
    return not entry.name.startswith(".") and entry.is_dir(follow_symlinks=not in_run)

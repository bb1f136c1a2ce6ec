"""Reads run folders: segments decoded in bulk, compacted to Parquet, queried with DuckDB.

Needs the `ui` extra (numpy, pyarrow, duckdb). A segment of 20,000 log() calls decodes in 30 ms:
frames of one key set have one length, so they become one numpy record array. A run that has ended
is compacted once to metrics/compact.parquet, which any tool reads; the segments stay the truth.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gaia_metrics import folder, names, segments
from gaia_metrics.errors import MetricsError
from gaia_metrics.jsonl import loads

LOST_AFTER_S = 60.0
COMPACT_BYTES = 1 << 20  # smaller runs decode faster than a Parquet file opens
_SCHEMA = pa.schema(
    [
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int64()),
        ("time", pa.float64()),
        ("value", pa.float64()),
    ]
)
Columns = dict[str, Any]


def decode(path: Path) -> tuple[dict[tuple[str, str], list[np.ndarray]], list[segments.Record]]:
    """One segment: (kind, metric) -> [steps, unix seconds, values], and its other records."""
    reader = segments.SegmentReader(path)
    shapes: dict[int, list[str]] = {}
    groups: dict[tuple[bytes, int], list[bytes]] = {}
    series: dict[tuple[str, str], list[np.ndarray]] = {}
    others: list[segments.Record] = []

    def settle() -> None:
        for (kind, shape), payloads in groups.items():
            columns = _columns(b"".join(payloads), shapes[shape])
            for name, values in columns.items():
                key = ("values" if kind == b"V" else "system", name)
                known = series.get(key)
                series[key] = (
                    [np.concatenate(pair) for pair in zip(known, values, strict=True)]
                    if known
                    else values
                )
        groups.clear()

    for payload in reader.payloads():
        kind = payload[:1]
        if kind in (b"V", b"S"):
            shape = segments.VALUES.unpack_from(payload)[1]
            groups.setdefault((kind, shape), []).append(payload)
        elif kind == b"K":
            shape = segments.SHAPE.unpack_from(payload)[1]
            if shape in shapes:  # stated again after records were shed
                settle()
            shapes[shape] = json.loads(payload[segments.SHAPE.size :])
        else:
            record = reader.decode(payload)
            if record is not None:
                others.append(record)
    settle()
    return series, others


def _columns(data: bytes, metric_names: list[str]) -> dict[str, list[np.ndarray]]:
    layout = np.dtype(
        [
            ("k", "S1"),
            ("shape", "<u4"),
            ("step", "<i8"),
            ("ns", "<i8"),
            ("v", "<f8", (len(metric_names),)),
        ]
    )
    rows = np.frombuffer(data, layout)
    seconds = rows["ns"] / 1e9
    return {name: [rows["step"], seconds, rows["v"][:, i]] for i, name in enumerate(metric_names)}


class LocalRun:
    """One run folder, read again only where its files changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoded: dict[Path, tuple[tuple, Any]] = {}
        self._table: tuple[Any, pa.Table] | None = None

    @property
    def info(self) -> dict:
        """run.json."""
        return folder.read_json(self.path / "run.json")

    def summary(self) -> dict:
        """What the list of runs shows, from small files only."""
        info, beat = self.info, {}
        with contextlib.suppress(MetricsError):
            beat = folder.read_json(self.path / "status.json")
        attempts = info.get("attempts", [])
        status = beat.get("status") or info.get("status", "unknown")
        updated = beat.get("time") or info.get("ended", 0.0)
        if status == "running" and time.time() - updated > LOST_AFTER_S:
            status = "lost"
        last, latest = self.last_line(), loads(json.dumps(beat.get("latest", {})))
        return {
            "run": info.get("id", self.path.name),
            "name": info.get("name", self.path.name),
            "project": info.get("project", ""),
            "status": status,
            "last_step": last.get("step", -1),
            "loss": last.get(names.LOSS, latest.get(names.LOSS)),
            "bpb": last.get(names.BPB, latest.get(names.BPB)),
            "attempts": len(attempts),
            "started": attempts[0]["started"] if attempts else 0.0,
            "updated": updated,
            "commit": info.get("git", {}).get("commit", ""),
            "host": attempts[-1]["host"] if attempts else "",
            "path": str(self.path),
        }

    def last_line(self) -> dict:
        """The newest values in the last lines of metrics.jsonl, with the last step."""
        merged: dict = {}
        try:
            with open(self.path / "metrics.jsonl", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
                lines = file.read().split(b"\n")[1 if file.tell() > 16384 else 0 : -1]
        except OSError:
            return {}
        for line in lines:
            with contextlib.suppress(ValueError):
                merged |= loads(line)
        return merged

    def _segments(self) -> list[tuple[Path, tuple]]:
        found = []
        for path in segments.paths(self.path / "metrics"):
            stat = path.stat()
            found.append((path, (stat.st_size, stat.st_mtime_ns, stat.st_ino)))
        return found

    def records(self, kind: str) -> list[segments.Record]:
        """Texts, histograms or alerts, oldest first."""
        return [r for path, key in self._segments() for r in self._read(path, key)[1]
                if r.kind == kind]  # fmt: skip

    def _read(self, path: Path, key: tuple) -> Any:
        known = self._decoded.get(path)
        if known is None or known[0] != key:
            known = (key, decode(path))
            self._decoded[path] = known
        return known[1]

    def table(self) -> pa.Table:
        """All values, last one per (kind, metric, step) or time; sorted by kind, metric, step."""
        present = self._segments()
        state = [(path.name, key[0]) for path, key in present]
        if self._table is not None and self._table[0] == state:
            return self._table[1]
        cache = self.path / "metrics" / "compact.parquet"
        table = _load_compact(cache, state)
        if table is None:
            table = self._build(present)
            size = sum(key[0] for _, key in present)
            if size > COMPACT_BYTES and self.summary()["status"] != "running":
                _save_compact(cache, table, state)
        self._table = (state, table)
        return table

    def _build(self, present: list[tuple[Path, tuple]]) -> pa.Table:
        joined: dict[tuple[str, str], list[list[np.ndarray]]] = {}
        for path, key in present:
            process = segments.process(path)
            for (kind, metric), columns in self._read(path, key)[0].items():
                name = metric if process == 0 else f"{metric} #{process}"
                joined.setdefault((kind, name), []).append(columns)
        parts = []
        for kind, metric in sorted(joined):
            step, seconds, value = (
                np.concatenate(column) for column in zip(*joined[kind, metric], strict=True)
            )
            order = _last_of_each(step if kind == "values" else seconds)
            count = len(order)
            columns = [
                _constant(kind, count),
                _constant(metric, count),
                _arrow(step[order], pa.int64()),
                _arrow(seconds[order], pa.float64()),
                _arrow(value[order], pa.float64()),
            ]
            parts.append(pa.Table.from_arrays(columns, schema=_SCHEMA))
        return pa.concat_tables(parts).unify_dictionaries() if parts else _SCHEMA.empty_table()


def _arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """An array over the same memory. pa.array() would import pandas: a second, for nothing."""
    dense = np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(dense), [None, pa.py_buffer(dense)])


def _constant(text: str, count: int) -> pa.DictionaryArray:
    zeros = _arrow(np.zeros(count, np.int32), pa.int32())
    data = text.encode()
    ends = pa.py_buffer(np.array([0, len(data)], np.int32))
    words = pa.StringArray.from_buffers(1, ends, pa.py_buffer(data))
    return pa.DictionaryArray.from_arrays(zeros, words)


def _last_of_each(keys: np.ndarray) -> np.ndarray:
    """Indices that sort `keys`, keeping the last of equal ones (a value logged twice)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    keep = np.ones(len(keys), bool)
    keep[:-1] = ordered[1:] != ordered[:-1]
    return order[keep]


def _load_compact(path: Path, state: list) -> pa.Table | None:
    try:
        file = pq.ParquetFile(path)
        meta = file.schema_arrow.metadata or {}
        if json.loads(meta.get(b"gaia.segments", b"null")) != [list(item) for item in state]:
            return None
        return file.read()
    except (OSError, ValueError, pa.ArrowException):
        return None


def _save_compact(path: Path, table: pa.Table, state: list) -> None:
    meta = {"gaia.segments": json.dumps(state)}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata(meta), temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError:  # only a cache: a folder that cannot be written is read without it
        temporary.unlink(missing_ok=True)


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
    """The runs below a folder. Safe for several threads.

    Args:
        root: a run folder, or a folder with run folders in it (up to four levels).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[Path, LocalRun] = {}
        self._lock = threading.RLock()

    def _find(self) -> list[LocalRun]:
        with self._lock:
            for path in _run_folders(self.root, 4):
                self._runs.setdefault(path, LocalRun(path))
            return [run for run in self._runs.values() if (run.path / "run.json").exists()]

    def run(self, key: str) -> LocalRun:
        """A run by id, folder name or name (the newest). Raises MetricsError where none is."""
        found = [r for r in self._find() if key in (r.info.get("id"), r.path.name)]
        found = found or [r for r in self._find() if r.info.get("name") == key]
        if not found:
            raise MetricsError(f"run={key!r} is not in {self.root}", "see `gaia-metrics ls`")
        return max(found, key=lambda r: r.summary()["started"])

    def runs(self) -> list[dict]:
        """Summaries, newest first. A folder whose run.json is broken is listed as such."""
        out = []
        for run in self._find():
            try:
                out.append(run.summary())
            except MetricsError as error:
                out.append(_damaged(run.path, str(error)))
        return sorted(out, key=lambda r: -r["started"])

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
        return self._query(
            _SERIES.format(x=_x_sql(x)), runs, {"metrics": list(metrics), "points": points}
        )

    def system(self, run: str, points: int = 500) -> Columns:
        """System values as columns metric, x (seconds since the first sample), value."""
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
            name = _constant(run.info["id"], len(table))
            tables.append(table.add_column(0, "run", name))
        if not tables:
            raise MetricsError("no runs were given", "see `gaia-metrics ls`")
        with duckdb.connect() as database:
            database.register("data", pa.concat_tables(tables).unify_dictionaries())
            used = {k: v for k, v in parameters.items() if f"${k}" in sql}
            return database.sql(sql, params=used).to_arrow_table().to_pydict()


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
    if (root / "run.json").exists():
        return [root]
    if depth == 0:
        return []
    try:
        children = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    return [found for child in children for found in _run_folders(child, depth - 1)]

"""The same calls as local.py's on the database, over ClickHouse's HTTP interface.

User and password come from GAIA_CLICKHOUSE_USER and GAIA_CLICKHOUSE_PASSWORD, never from the
address: addresses end up in logs. Reads the views of deploy/clickhouse/schema/views.sql, and
series from the table itself: the view gaia.metrics looks up each row's attempt in a join, which
takes three times as long as reading a run's metric. Here the few void tails are asked for first.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gaia_metrics import names
from gaia_metrics.errors import MetricsError
from gaia_metrics.reading import clickhouse_sql as sql
from gaia_metrics.reading.selection import check_points

Columns = dict[str, Any]
TIMEOUT_S = 30
# Text in JSON: NaN and 64-bit integers come whole, without a setting that asks for it.
_NUMBER = re.compile(
    r"(?:Nullable\(|LowCardinality\(|SimpleAggregateFunction\(\w+, )*((?:U?Int|Float)\d+)\)*"
)
_CODE = re.compile(r"Code: (\d+)")
_SAID = re.compile(r"Code: \d+\. DB::Exception[^\n]*")
# Of ClickHouse's ErrorCodes.cpp: too many rows (158) or bytes (307), too long (159) or slow (160),
# a quota (201), queries at once (202), memory (241), rows or bytes of a result (396).
LIMITS = {158, 159, 160, 201, 202, 241, 307, 396}
FORMAT = "JSONCompactStringsEachRowWithNamesAndTypes"


class ClickHouseSource:
    """Runs in the database.

    Args:
        url: http(s)://host:port of ClickHouse's HTTP interface, without user and password.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, _ = parts.hostname, parts.port  # the port is read here, and may raise
        except ValueError:
            host = ""
        if not host:  # not shown: it may hold a password
            raise MetricsError(
                "the database's address is none", "give clickhouse://HOST:PORT, or clickhouses://"
            )
        if parts.username or parts.password:
            raise MetricsError(
                "the database address holds a user or password",
                "set GAIA_CLICKHOUSE_USER and GAIA_CLICKHOUSE_PASSWORD instead",
            )
        self._url = url.rstrip("/") + "/"

    def runs(self) -> list[dict]:
        """Summaries, newest first."""
        return _records(self._query(sql.RUNS, loss=names.LOSS, bpb=names.BPB))

    def _ids(self, keys: Sequence[str]) -> list[str]:
        columns = self._query(sql.IDS, keys=list(keys))
        known = dict(zip(columns["key"], columns["run"], strict=True))
        for key in keys:
            if key not in known:
                raise MetricsError(f"run={key!r} is not in the database", "see `gaia-metrics ls`")
        return [known[key] for key in keys]

    def _values(self, runs: list[str]) -> tuple[str, dict[str, list]]:
        """SQL of the runs' values without void tails, with @only for more, and its parameters."""
        voids = self._query(sql.VOIDS, runs=runs)
        parameters = {"runs": runs}
        if not voids["run_id"]:
            return sql.VALUES, parameters
        parameters |= {"cut_runs": voids["run_id"], "cut_attempts": voids["attempt"]}
        return sql.VALUES + sql.CUT, parameters | {"cutoffs": voids["cutoff"]}

    def config(self, run: str) -> dict:
        """The run's config as dotted names and text."""
        flat = json.loads(self._query(sql.CONFIG, run=self._ids([run])[0])["config"][0])
        return {key.removeprefix("config."): value for key, value in flat.items()}

    def metrics(self, run: str) -> list[dict]:
        """Metric names with count, last value, least and greatest finite value."""
        values, parameters = self._values(self._ids([run]))
        return _records(
            self._query(sql.METRICS.replace("@values", values.replace("@only", "")), **parameters)
        )

    def metric_names(self, run: str) -> list[str]:
        """Names of the run's training metrics."""
        return [row["metric"] for row in self.metrics(run)]

    def details(self, run: str) -> dict:
        """Everything that the database knows of a run."""
        run_id = self._ids([run])[0]
        row = next(row for row in self.runs() if row["run"] == run_id)
        return row | {"id": run_id, "config": self.config(run_id), "git": {"commit": row["commit"]}}

    def histograms(self, run: str) -> list[dict]:
        """Histogram records, oldest first: step, name, count, sum, min, max and buckets."""
        rows = _records(self._query(sql.HISTOGRAMS, run=self._ids([run])[0]))
        for row in rows:
            for side in ("positive", "negative"):
                row[side] = [row.pop(f"{side}_offset"), json.loads(row.pop(f"{side}_counts"))]
        return rows

    def series(
        self, runs: Sequence[str], metrics: Sequence[str], x: str = "step", points: int = 0
    ) -> Columns:
        """Values as columns run, metric, x, value, low, high, step; see LocalSource.series."""
        check_points(points)
        if x not in names.X_AXES:
            raise MetricsError(f"x={x!r}", f"use one of {', '.join(names.X_AXES)}")
        values, parameters = self._values(self._ids(runs))
        inner = sql.X.get(x) or sql.ASOF.format(counter=names.X_AXES[x]).replace(
            "@counter", values.replace("@only", f" AND metric = '{names.X_AXES[x]}'")
        )
        query = sql.SERIES.replace("@x", inner).replace(
            "@values", values.replace("@only", sql.ONLY)
        )
        parameters["names"] = list(metrics)
        parameters["metrics"] = sorted({*metrics, *(m.split(" #")[0] for m in metrics)})
        return self._query(query, points=points, **parameters)

    def system(self, run: str, points: int = 500) -> Columns:
        """System values as columns metric, x (seconds since the first sample), value."""
        check_points(points, least=1)
        return self._query(sql.SYSTEM, run=self._ids([run])[0], points=points)

    def texts(self, run: str, kind: str = "text") -> list[dict]:
        """Texts ("text") or alerts ("alert"), oldest first."""
        return _records(self._query(sql.TEXTS, run=self._ids([run])[0], kind=kind))

    def delete(self, run: str) -> str:
        """Delete every row of a run, as a user that may; returns the run id."""
        run_id = self._ids([run])[0]
        for table in sql.TABLES:
            self._send(f"DELETE FROM gaia.{table} WHERE run_id = {{run:String}}", {"run": run_id})
        return run_id

    def _query(self, query: str, **parameters: Any) -> Columns:
        """Run a query; no setting goes with it, as a user under readonly=1 may change none."""
        answer = self._send(f"{query}\nFORMAT {FORMAT}", parameters)
        try:
            return _columns(answer.splitlines())
        except (ValueError, TypeError, StopIteration) as error:
            # An error after the first rows were sent stands behind them.
            said = _SAID.search(answer.decode("utf-8", "replace"))
            text = said[0][:300] if said else "it is cut short"
            raise MetricsError(f"the database ends its answer early: {text}", _remedy(text)) \
                from error  # fmt: skip

    def _send(self, query: str, parameters: Mapping[str, Any]) -> bytes:
        arguments = {f"param_{key}": literal(value) for key, value in parameters.items()}
        request = urllib.request.Request(
            f"{self._url}?{urllib.parse.urlencode(arguments)}", query.encode()
        )
        if os.environ.get("GAIA_CLICKHOUSE_USER"):
            request.add_header("X-ClickHouse-User", os.environ["GAIA_CLICKHOUSE_USER"])
            request.add_header("X-ClickHouse-Key", os.environ.get("GAIA_CLICKHOUSE_PASSWORD", ""))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            with error, contextlib.suppress(OSError, http.client.HTTPException):
                text = error.read(300).decode("utf-8", "replace").split("\n")[0]
                raise MetricsError(f"the database refuses a query: {text}", _remedy(text)) \
                    from error  # fmt: skip
            raise MetricsError(f"{self._url} answers {error.code}", "try again") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            raise MetricsError(f"{self._url} does not answer ({problem})", "check the address") \
                from error  # fmt: skip


def _remedy(text: str) -> str:
    code = _CODE.search(text)
    if code is None:
        return "see its log, and try again"
    if int(code[1]) in (194, 516):
        return "set GAIA_CLICKHOUSE_USER and GAIA_CLICKHOUSE_PASSWORD"
    if int(code[1]) in LIMITS:
        return "ask for fewer runs or metrics, or for --points N"
    return "check the user's grants and apply deploy/clickhouse/schema"


def _columns(lines: Iterable[bytes]) -> Columns:
    """Columns by name from FORMAT's lines: names, types, then rows of text."""
    head = iter(lines)
    names_, types = json.loads(next(head)), json.loads(next(head))
    columns: list[list] = [[] for _ in names_]
    for line in head:
        for column, value in zip(columns, json.loads(line), strict=True):
            column.append(value)
    readers = [_reader(kind) for kind in types]
    return {
        name: column if read is None else [None if v is None else read(v) for v in column]
        for name, column, read in zip(names_, columns, readers, strict=True)
    }


def _reader(kind: str) -> Callable[[str], Any] | None:
    """Return the function that reads a value of a ClickHouse type; None for text."""
    number = _NUMBER.fullmatch(kind)
    if number is None:
        return None
    return float if number[1].startswith("Float") else int


def literal(value: Any) -> str:
    """A query parameter as ClickHouse reads it from the address."""
    if isinstance(value, list):
        return "[" + ",".join(_quoted(v) if isinstance(v, str) else str(v) for v in value) + "]"
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return str(value)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _records(columns: Mapping[str, list]) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

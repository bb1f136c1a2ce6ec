"""The same calls as local.py's on the database, over ClickHouse's HTTP interface.

User and password come from GAIA_CLICKHOUSE_USER and GAIA_CLICKHOUSE_PASSWORD, never from the
address: addresses end up in logs. Reads the views of deploy/clickhouse/schema/03-views.sql, and
series from the table itself: the view gaia.metrics looks up each row's attempt in a join, which
takes three times as long as reading a run's metric. Here the few void tails are asked for first.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from gaia_metrics import names
from gaia_metrics.errors import MetricsError

Columns = dict[str, Any]
TIMEOUT_S = 30

_RUNS = """
SELECT r.run_id AS run, r.name AS name, r.project AS project, r.status AS status,
  r.last_step AS last_step, l.loss AS loss, l.bpb AS bpb, r.attempts AS attempts,
  toUnixTimestamp64Milli(r.started) / 1000 AS started,
  toUnixTimestamp64Milli(r.updated) / 1000 AS updated, r.git_commit AS commit, r.host AS host
FROM gaia.runs AS r
LEFT ANY JOIN (
  SELECT run_id, anyIf(last, metric = {loss:String}) AS loss,
    anyIf(last, metric = {bpb:String}) AS bpb
  FROM gaia.run_latest WHERE metric IN ({loss:String}, {bpb:String}) GROUP BY run_id
) AS l ON l.run_id = r.run_id
ORDER BY started DESC
"""
# Run ids of the keys: an id, or the newest run of that name.
_IDS = """
SELECT key, argMax(run_id, (run_id = key, started)) AS run FROM (
  SELECT arrayJoin([run_id, name]) AS key, run_id, started FROM gaia.runs
  WHERE run_id IN {keys:Array(String)} OR name IN {keys:Array(String)})
WHERE key IN {keys:Array(String)} GROUP BY key
"""
# Attempts that a later one cut short: their values hold up to the step `cutoff`.
_VOIDS = """
SELECT run_id, attempt, cutoff FROM gaia.void_tails WHERE run_id IN {runs:Array(String)}
"""
# As in run folders, another process's series has its number behind the name.
_VALUES = """
SELECT run_id AS run, if(proc = 0, metric, concat(metric, ' #', toString(proc))) AS name,
  step, ts, value
FROM gaia.training_metrics FINAL
WHERE run_id IN {runs:Array(String)}@only
"""
_ONLY = " AND metric IN {metrics:Array(String)}"
_CUT = """
  AND NOT arrayExists((r, a, c) -> run_id = r AND attempt = a AND toInt64(step) > c,
    {cut_runs:Array(String)}, {cut_attempts:Array(UInt32)}, {cutoffs:Array(Int64)})
"""
_METRICS = """
SELECT name AS metric, count() AS count, argMax(value, step) AS last, max(step) AS last_step,
  minIf(value, isFinite(value)) AS min, maxIf(value, isFinite(value)) AS max
FROM (@values) GROUP BY name ORDER BY name
"""
_SERIES = """
WITH v AS (
  SELECT run, name AS metric, step, toUnixTimestamp64Milli(ts) / 1000 AS time, value
  FROM (@values) WHERE name IN {names:Array(String)}),
xs AS (@x),
b AS (
  SELECT *, if({points:UInt32} = 0, toFloat64(step),
    least(toFloat64({points:UInt32}) - 1,
      floor((x - min(x) OVER w) * {points:UInt32} / greatest(max(x) OVER w - min(x) OVER w, 1e-9))))
    AS bucket
  FROM xs WINDOW w AS (PARTITION BY run))
SELECT run, metric, avg(b.x) AS x, avg(b.value) AS value, min(b.value) AS low,
  max(b.value) AS high, max(b.step) AS step
FROM b GROUP BY run, metric, bucket ORDER BY run, metric, x
"""
_X = {
    "step": "SELECT *, toFloat64(step) AS x FROM v",
    "time": "SELECT *, time - min(time) OVER (PARTITION BY run) AS x FROM v",
}
_ASOF = """
SELECT v.run AS run, v.metric AS metric, v.step AS step, v.time AS time, v.value AS value,
  c.value AS x
FROM v ASOF JOIN (SELECT run, step, value FROM (@counter) WHERE name = '{counter}') AS c
ON v.run = c.run AND v.step >= c.step
"""
_SYSTEM = """
WITH v AS (
  SELECT if(proc = 0, metric, concat(metric, ' #', toString(proc))) AS metric, value,
    toUnixTimestamp64Milli(ts) / 1000 AS time
  FROM gaia.system WHERE run_id = {run:String}),
b AS (
  SELECT *, time - min(time) OVER () AS x, least(toFloat64({points:UInt32}) - 1,
    floor((time - min(time) OVER ()) * {points:UInt32}
      / greatest(max(time) OVER () - min(time) OVER (), 1e-9))) AS bucket FROM v)
SELECT metric, avg(b.x) AS x, avg(b.value) AS value FROM b
GROUP BY metric, bucket ORDER BY metric, x
"""
_TEXTS = """
SELECT step, toUnixTimestamp64Milli(ts) / 1000 AS time, name, body AS text, level
FROM gaia.run_texts WHERE run_id = {run:String} AND kind = {kind:String} ORDER BY time, step
"""


class ClickHouseSource:
    """Runs in the database.

    Args:
        url: http(s)://host:port of ClickHouse's HTTP interface, without user and password.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.username or parts.password:
            raise MetricsError(
                "the database address holds a user or password",
                "set GAIA_CLICKHOUSE_USER and GAIA_CLICKHOUSE_PASSWORD instead",
            )
        self._url = url.rstrip("/") + "/"

    def runs(self) -> list[dict]:
        """Summaries, newest first."""
        return _records(self._query(_RUNS, loss=names.LOSS, bpb=names.BPB))

    def _ids(self, keys: Sequence[str]) -> list[str]:
        found = self._query(_IDS, keys=list(keys))
        known = dict(zip(found["key"], found["run"], strict=True))
        for key in keys:
            if key not in known:
                raise MetricsError(f"run={key!r} is not in the database", "see `gaia-metrics ls`")
        return [known[key] for key in keys]

    def _values(self, runs: list[str]) -> tuple[str, dict[str, list]]:
        """SQL of the runs' values without void tails, with @only for more, and its parameters."""
        voids = self._query(_VOIDS, runs=runs)
        parameters = {"runs": runs}
        if not voids["run_id"]:
            return _VALUES, parameters
        parameters |= {"cut_runs": voids["run_id"], "cut_attempts": voids["attempt"]}
        return _VALUES + _CUT, parameters | {"cutoffs": voids["cutoff"]}

    def config(self, run: str) -> dict:
        """The run's config as dotted names and text."""
        sql = "SELECT config FROM gaia.runs WHERE run_id = {run:String}"
        found = self._query(sql, run=self._ids([run])[0])["config"][0]
        return {key.removeprefix("config."): value for key, value in found.items()}

    def metrics(self, run: str) -> list[dict]:
        """Metric names with count, last value, least and greatest finite value."""
        values, parameters = self._values(self._ids([run]))
        return _records(
            self._query(_METRICS.replace("@values", values.replace("@only", "")), **parameters)
        )

    def series(
        self, runs: Sequence[str], metrics: Sequence[str], x: str = "step", points: int = 0
    ) -> Columns:
        """Values as columns run, metric, x, value, low, high, step; see LocalSource.series."""
        if x not in names.X_AXES:
            raise MetricsError(f"x={x!r}", f"use one of {', '.join(names.X_AXES)}")
        values, parameters = self._values(self._ids(runs))
        inner = _X.get(x) or _ASOF.format(counter=names.X_AXES[x]).replace(
            "@counter", values.replace("@only", f" AND metric = '{names.X_AXES[x]}'")
        )
        sql = _SERIES.replace("@x", inner).replace("@values", values.replace("@only", _ONLY))
        parameters["names"] = list(metrics)
        parameters["metrics"] = sorted({*metrics, *(m.split(" #")[0] for m in metrics)})
        return self._query(sql, points=points, **parameters)

    def system(self, run: str, points: int = 500) -> Columns:
        """System values as columns metric, x (seconds since the first sample), value."""
        return self._query(_SYSTEM, run=self._ids([run])[0], points=points)

    def texts(self, run: str, kind: str = "text") -> list[dict]:
        """Texts ("text") or alerts ("alert"), oldest first."""
        return _records(self._query(_TEXTS, run=self._ids([run])[0], kind=kind))

    def _query(self, sql: str, **parameters: Any) -> Columns:
        arguments = {f"param_{k}": literal(v) for k, v in parameters.items()}
        arguments["default_format"] = "JSONColumnsWithMetadata"
        arguments["output_format_json_quote_denormals"] = "1"
        arguments["output_format_json_quote_64bit_integers"] = "0"
        request = urllib.request.Request(
            f"{self._url}?{urllib.parse.urlencode(arguments)}", data=sql.encode()
        )
        if os.environ.get("GAIA_CLICKHOUSE_USER"):
            request.add_header("X-ClickHouse-User", os.environ["GAIA_CLICKHOUSE_USER"])
            request.add_header("X-ClickHouse-Key", os.environ.get("GAIA_CLICKHOUSE_PASSWORD", ""))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                data = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(300).decode("utf-8", "replace").split("\n")[0]
            raise MetricsError(f"the database refuses a query: {text}", "check user and schema") \
                from error  # fmt: skip
        except (OSError, ValueError) as error:
            raise MetricsError(f"{self._url} does not answer ({error})", "check the address") \
                from error  # fmt: skip
        columns = (item["name"] for item in data["meta"])
        return {name: [_number(v) for v in data["data"].get(name, ())] for name in columns}


def literal(value: Any) -> str:
    """A query parameter as ClickHouse reads it from the address."""
    if isinstance(value, list):
        return "[" + ",".join(_quoted(v) if isinstance(v, str) else str(v) for v in value) + "]"
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return str(value)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _records(columns: Mapping[str, list]) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

"""Run folders of W&B, offline and online ones, as foreign runs.

Files of one run id are attempts of one run. A row's step is its `_step`, or the value of the metric
that `define_metric` made its x axis where that holds whole numbers.
"""

from __future__ import annotations

import fnmatch
import html
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaia_metrics.errors import MetricsError
from gaia_metrics.importing import wandb_log
from gaia_metrics.importing.source import ForeignRun, Item, Progress, Start, Values
from gaia_metrics.recording.histogram import of_buckets

STATUS = {0: "finished", 143: "stopped"}
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
RESERVED = {"step", "time"}  # keys of metrics.jsonl's own
TAGS = re.compile(r"<[^>]*>")
LOOK_RECORDS = 50  # the run's own record is among the first


def find(path: Path) -> list[ForeignRun]:
    """Find the runs at or below `path`: a .wandb file, a run folder, or the folder above.

    Raises:
        MetricsError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("run-*.wandb"))
    grouped: dict[tuple[str, ...], list[tuple[float, Path, Any]]] = {}
    for file in files:
        run = _head(file)
        if run is None:
            continue  # killed before W&B had written anything
        config = _updates(run.config.update)
        own = config.get("gaia_run")  # an attempt that a sink of ours has mirrored
        identity = ("gaia", str(own)) if own else ("wandb", run.entity, run.project, run.run_id)
        grouped.setdefault(identity, []).append((_seconds(run.start_time), file, run))
    if not grouped:
        raise MetricsError(f"{path} holds no run of W&B (run-*.wandb)", "check the path")
    return [_run(identity, sorted(parts)) for identity, parts in grouped.items()]


def _run(identity: tuple[str, ...], parts: list[tuple[float, Path, Any]]) -> ForeignRun:
    run = parts[0][2]
    foreign = ForeignRun(
        identity,
        run.display_name or run.run_id,
        [file for _, file, _ in parts],
        started=parts[0][0],
        status="running",  # until an exit is found; readers show it as lost
    )

    def read(progress: Progress) -> Iterator[Item]:
        last = -1
        for _, file, _ in parts:
            reader = _Reader(foreign, file, last)
            yield from reader.items(progress)
            last = max(last, reader.step)

    foreign.read = read
    return foreign


def _head(path: Path) -> Any:
    for count, (_, record) in enumerate(wandb_log.records(path)):
        if record.WhichOneof("record_type") == "run":
            return record.run
        if count > LOOK_RECORDS:
            break
    return None


class _Reader:
    """Reads one file into items, and the run's facts into `run`."""

    def __init__(self, run: ForeignRun, path: Path, before: int) -> None:
        self._run, self._path = run, path
        self._before = before  # the last step of the files before this one
        self._axes: list[tuple[str, str]] = []  # pattern of metric names -> their x axis
        self._last: dict[str, Any] = {}  # the last value of each x axis
        self.step, self._time_ns = 0, 0  # the last ones
        self._logged: set[str] = set()
        self._summary: dict[str, Any] = {}

    def items(self, progress: Progress) -> Iterator[Item]:
        before = 0
        for offset, record in wandb_log.records(self._path):
            progress(offset - before)
            before = offset
            kind = record.WhichOneof("record_type")
            if kind == "run":
                yield self._started(record.run)
            elif kind == "history":
                yield from self._row(_updates(record.history.item), record.history.step.num)
            elif kind == "config":
                self._configure(record.config)
            elif kind == "metric" and record.metric.step_metric:
                pattern = record.metric.glob_name or record.metric.name
                self._axes.append((pattern, record.metric.step_metric))
            elif kind == "stats":
                yield from self._sample(record.stats)
            elif kind == "alert":
                level = record.alert.level.lower() or "info"
                yield self._record("alert", record.alert.title, self.step) | {
                    "text": record.alert.text,
                    "level": level,
                }
            elif kind == "summary":
                self._summary |= _updates(record.summary.update)
            elif kind == "exit":
                self._run.status = STATUS.get(record.exit.exit_code, "crashed")
        yield from self._only_in_summary()

    def _started(self, run: Any) -> Start:
        facts = self._run
        facts.project, facts.host = run.project, run.host
        facts.notes, facts.commit = run.notes, run.git.commit
        facts.tags = [str(tag) for tag in run.tags]
        facts.config |= _config(_updates(run.config.update))
        self._time_ns = int(_seconds(run.start_time) * 1e9)
        resumes = run.starting_step - 1 if run.starting_step else self._before
        resumes = facts.config.pop("gaia_resume_step", resumes)
        for own in ("gaia_run", "gaia_attempt"):
            facts.config.pop(own, None)
        return Start(int(resumes), self._time_ns)

    def _configure(self, config: Any) -> None:
        self._run.config |= _config(_updates(config.update))
        for item in config.remove:
            self._run.config.pop(item.key or (item.nested_key or [""])[0], None)

    def _row(self, row: dict[str, Any], number: int) -> Iterator[Item]:
        """Yield one call of wandb.log: its numbers by step, then its texts and histograms."""
        own = int(row.get("_step", number))
        if isinstance(at := row.get("_timestamp"), int | float):
            self._time_ns = int(at * 1e9)
        flat = dict(_flat({k: v for k, v in row.items() if not k.startswith("_")}))
        axes = {axis for _, axis in self._axes}
        self._last |= {name: value for name, value in flat.items() if name in axes}
        numbers: dict[int, dict[str, float]] = {}
        others = []
        for name, value in flat.items():
            self._logged.add(name)
            axis = self._axis(name)
            if name == axis == "step":
                continue  # it is the step itself
            step = _whole(self._last.get(axis), own) if axis else own
            key = f"train/{name}" if name in RESERVED else name
            if isinstance(value, bool | int | float):
                numbers.setdefault(step, {})[key] = float(value)
            else:
                others += [(step, key, value)]
        for step, values in numbers.items():
            self.step = max(self.step, step)
            # W&B shuffles the keys of each row; in one order they are one key set of the segments.
            yield Values(step, self._time_ns, dict(sorted(values.items())))
        for step, name, value in others:
            yield from self._other(step, name, value)

    def _axis(self, name: str) -> str:
        for pattern, axis in self._axes:
            if fnmatch.fnmatchcase(name, pattern) and (name != axis or axis == "step"):
                return axis
        return ""

    def _other(self, step: int, name: str, value: Any) -> Iterator[Item]:
        if isinstance(value, str):
            yield self._record("text", name, step) | {"text": value}
        elif isinstance(value, dict) and value.get("_type") == "histogram":
            edges, counts = _histogram(value)
            if len(edges) == len(counts) + 1:
                yield self._record("histogram", name, step) | of_buckets(edges, counts)
        elif isinstance(value, dict) and value.get("_type") in ("html-file", "table-file"):
            file = self._path.parent / "files" / str(value.get("path"))
            if not file.resolve().is_relative_to(self._path.parent.resolve()) or not file.exists():
                self._run.skip("missing file")
                return
            text = file.read_text(errors="replace")
            if value["_type"] == "html-file":
                text = html.unescape(TAGS.sub("", text))
                yield self._record("text", name, step) | {"text": text}
                return
            for line in _lines(json.loads(text)):
                yield self._record("text", name, step) | {"text": line}
        elif value is not None:
            kind = value.get("_type", "table") if isinstance(value, dict) else type(value).__name__
            self._run.skip(kind)

    def _sample(self, stats: Any) -> Iterator[Item]:
        values = {}
        for item in stats.item:
            value = json.loads(item.value_json)
            if isinstance(value, int | float):
                values[f"system.{item.key}"] = float(value)
        if values:
            at = int(_seconds(stats.timestamp) * 1e9) or self._time_ns
            yield Values(self.step, at, values, system=True)

    def _only_in_summary(self) -> Iterator[Item]:
        """Yield numbers that the program put into the summary by hand, at the last step."""
        values = {
            name: float(value)
            for name, value in _flat({k: v for k, v in self._summary.items() if k[:1] != "_"})
            if isinstance(value, bool | int | float) and name not in self._logged
        }
        if values:
            yield Values(self.step, self._time_ns, values)

    def _record(self, kind: str, name: str, step: int) -> dict[str, Any]:
        return {"kind": kind, "name": name, "step": step, "time_ns": self._time_ns}


def _updates(items: Any) -> dict[str, Any]:
    """Turn key-value items into a table; nested keys become tables in it."""
    table: dict[str, Any] = {}
    for item in items:
        keys = list(item.nested_key) or [item.key]
        value = json.loads(item.value_json) if item.value_json else None
        if isinstance(value, str):
            value = NUMBERS.get(value, value)
        inner = table
        for key in keys[:-1]:
            known = inner.get(key)
            inner[key] = inner = known if isinstance(known, dict) else {}
        inner[keys[-1]] = value
    return table


def _config(update: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in update.items() if key != "_wandb"}


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; media (tables with a `_type`) stay whole."""
    for key, value in table.items():
        if isinstance(value, dict) and "_type" not in value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _whole(value: Any, otherwise: int) -> int:
    is_whole = isinstance(value, int | float) and 0 <= value < 2**62 and value == int(value)
    return int(value) if is_whole else otherwise


def _histogram(value: dict[str, Any]) -> tuple[list[float], list[float]]:
    packed = value.get("packedBins")
    counts = value.get("values") or []
    if packed:
        size = packed["size"]
        return [packed["min"] + i * size for i in range(packed["count"] + 1)], counts
    return value.get("bins") or [], counts


def _lines(table: dict[str, Any]) -> Iterator[str]:
    """Yield a table's rows as texts: the one column alone, or `column: value` line by line."""
    columns = [str(column) for column in table.get("columns", [])]
    for row in table.get("data", []):
        if len(columns) == 1:
            yield str(row[0])
        else:
            yield "\n".join(f"{c}: {v}" for c, v in zip(columns, row, strict=False))


def _seconds(timestamp: Any) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9

"""One run folder, decoded, and compacted once it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gaia_metrics import names
from gaia_metrics.errors import FormatError, MetricsError
from gaia_metrics.reading.decode import decode
from gaia_metrics.reading.table import (
    SCHEMA,
    column,
    constant,
    last_of_each,
    load_compact,
    save_compact,
)
from gaia_metrics.sending import spool
from gaia_metrics.storage import folder, segments
from gaia_metrics.storage.jsonl import loads

LOST_AFTER_S = 60.0
COMPACT_BYTES = 1 << 20  # smaller runs decode faster than a Parquet file opens


class LocalRun:
    """One run folder, read again only where its files changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoded: dict[Path, tuple[tuple, Any]] = {}
        self._table: tuple[Any, pa.Table] | None = None
        self._info: tuple[Any, dict] = (None, {})
        self._summary: tuple[Any, dict] = (None, {})

    @property
    def info(self) -> dict:
        """The content of run.json. Raises FormatError where it is damaged."""
        state = _state(self.path / "run.json")
        if state is None or state != self._info[0]:
            self._info = (state, folder.read_json(self.path / "run.json"))
        return self._info[1]

    def summary(self) -> dict:
        """Summarize the run for the list of runs, from small files only.

        Raises FormatError where these hold something else than the facts of a run.
        """
        spooled = self.path / "metrics" / "spool"
        small = ("run.json", "status.json", "metrics.jsonl")
        state = [_state(self.path / name) for name in small] + [_state(spooled)]
        if state != self._summary[0]:
            try:
                self._summary = (state, self._summarize())
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise FormatError(
                    f"{self.path} has no whole run.json and status.json "
                    f"({type(error).__name__}: {error})",
                    "move the damaged one away, or bring it back from a copy",
                ) from error
        row = dict(self._summary[1])
        if row["status"] == "running" and time.time() - row["updated"] > LOST_AFTER_S:
            row["status"] = "lost"
        return row

    def _summarize(self) -> dict:
        info, beat = self.info, {}
        with contextlib.suppress(MetricsError):
            beat = folder.read_json(self.path / "status.json")
        attempts = info.get("attempts", [])
        last, latest = last_line(self.path), loads(json.dumps(beat.get("latest", {})))
        return {
            "run": info.get("id", self.path.name),
            "name": info.get("name", self.path.name),
            "project": info.get("project", ""),
            "status": beat.get("status") or info.get("status", "unknown"),
            "last_step": last.get("step", -1),
            "loss": last.get(names.LOSS, latest.get(names.LOSS)),
            "bpb": last.get(names.BPB, latest.get(names.BPB)),
            "attempts": len(attempts),
            "started": float(attempts[0]["started"]) if attempts else 0.0,
            "updated": float(beat.get("time") or info.get("ended", 0.0)),
            "commit": info.get("git", {}).get("commit", ""),
            "host": attempts[-1]["host"] if attempts else "",
            "path": str(self.path),
            "tags": info.get("tags", []),
            "notes": info.get("notes", ""),
            "unsent_bytes": _unsent(self.path),
            "refused": len(spool.refused(self.path / "metrics" / "spool")),
        }

    def _segments(self) -> list[tuple[Path, tuple]]:
        states = []
        for path in segments.paths(self.path / "metrics"):
            stat = path.stat()
            states.append((path, (stat.st_size, stat.st_mtime_ns, stat.st_ino)))
        return states

    def metric_names(self) -> list[str]:
        """Names of the training metrics, without building the table of their values."""
        known = set()
        for path, key in self._segments():
            process = segments.process(path)
            for kind, metric in self._read(path, key)[0]:
                if kind == "values":
                    known.add(metric if process == 0 else f"{metric} #{process}")
        return sorted(known)

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
        if self._table is not None and self._table[0] == present:  # also of another run's files
            return self._table[1]
        cache = self.path / "metrics" / "compact.parquet"
        table = load_compact(cache, state)
        if table is None:
            table = self._build(present)
            size = sum(key[0] for _, key in present)
            if size > COMPACT_BYTES and self.summary()["status"] != "running":
                save_compact(cache, table, state)
        self._table = (present, table)
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
            order = last_of_each(step if kind == "values" else seconds)
            count = len(order)
            columns = [
                constant(kind, count),
                constant(metric, count),
                column(step[order], pa.int64()),
                column(seconds[order], pa.float64()),
                column(value[order], pa.float64()),
            ]
            parts.append(pa.Table.from_arrays(columns, schema=SCHEMA))
        return pa.concat_tables(parts).unify_dictionaries() if parts else SCHEMA.empty_table()


def _state(path: Path) -> tuple | None:
    """Return what changes with a file's content; None where it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def last_line(path: Path) -> dict:
    """Read the last step, loss and bits per byte from the end of a run's metrics.jsonl.

    Only the lines that hold the newest of them are parsed: a list of 3,000 runs is read at once.
    """
    try:
        with open(path / "metrics.jsonl", "rb") as file:
            size, want = os.fstat(file.fileno()).st_size, 16384
            while True:  # until a whole line is in it: a line of 5,000 metrics has 200 kB
                file.seek(max(0, size - want))
                text = file.read(want)
                start = text.find(b"\n") + 1 if size > want else 0
                text = text[start : text.rfind(b"\n") + 1]
                if text or want >= size:
                    break
                want *= 8
    except OSError:
        return {}
    newest: dict = {}
    for name in (names.BPB, names.LOSS, "step"):  # the step's line last: it is the newest
        at = text.rfind(f'"{name}": '.encode())
        if at < 0:
            continue
        with contextlib.suppress(ValueError):
            newest |= loads(text[text.rfind(b"\n", 0, at) + 1 : text.find(b"\n", at)])
    return newest


def _unsent(path: Path) -> int:
    """Bytes in the spool that no receiver has acknowledged."""
    total = 0
    for file in spool.paths(path / "metrics" / "spool"):
        with contextlib.suppress(OSError):  # sent meanwhile
            total += file.stat().st_size
    return total

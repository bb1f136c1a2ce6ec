"""Collects records and makes OTLP requests of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gaia_metrics.sending import wire

MAX_POINTS = 20_000  # that are collected before a request is made: 0.7 MB
MAX_BYTES = 3 << 20  # of a request: a collector's gRPC server takes 4 MiB
MAX_TEXT = 64 << 10  # characters of one text in the database; the run folder keeps all of it
SEVERITY = {"info": 9, "warn": 13, "error": 17}


class Builder:
    """Collects records and makes OTLP requests of them.

    Args:
        resource: gaia.run.id, gaia.run.attempt, gaia.process.index, host.name, service.name, …
        emit: takes (signal, request bytes).
    """

    def __init__(
        self, resource: Mapping[str, wire.Scalar], emit: Callable[[bytes, bytes], None]
    ) -> None:
        self.resource = resource
        self._emit = emit
        self._points: defaultdict[str, list[bytes]] = defaultdict(list)
        self._columns: dict[tuple[str, ...], list[list[bytes]]] = {}  # the lists of a key set
        self._count = 0
        self._metrics: list[bytes] = []
        self._logs: list[bytes] = []

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Take one `log()`; system values are points without a step."""
        names, count = tuple(values), len(values)
        columns = self._columns.get(names)
        if columns is None:
            columns = self._columns[names] = [self._points[name] for name in names]
        for column, point in zip(
            columns,
            wire.points(time_ns, None if system else step, values.values(), count),
            strict=True,
        ):
            column.append(point)
        self._count += count
        if self._count >= MAX_POINTS:
            self.flush()

    def record(self, record: Mapping[str, Any]) -> None:
        """Take a text, histogram or alert."""
        step, time_ns = record["step"], record["time_ns"]
        if record["kind"] == "histogram":
            self._metrics.append(wire.exponential_histogram(record["name"], step, time_ns, record))
            return
        level = SEVERITY.get(record.get("level", "info"), 9)
        values = {"gaia.kind": record["kind"], "gaia.name": record["name"], "step": step}
        if "seq" in record:  # records of older versions have none: their time tells them apart
            values["gaia.seq"] = record["seq"]
        body = record["text"][:MAX_TEXT]
        self._logs.append(wire.log_record(time_ns, level, "gaia.run", body, values))

    def info(self, time_ns: int, start_ns: int, values: Mapping[str, wire.Scalar]) -> None:
        """Take the run's facts: the runs table is made from them."""
        point = wire.info_point(time_ns, start_ns, values)
        self._metrics.append(wire.gauge("gaia.run.info", point))

    def flush(self) -> None:
        """Emit what was collected, in requests of at most MAX_BYTES."""
        if self._points or self._metrics:
            metrics = [wire.gauge(name, b"".join(p)) for name, p in self._points.items()]
            for part in _cut([*metrics, *self._metrics]):
                self._emit(b"m", wire.metrics_request(self.resource, part))
            self._points.clear()
            self._columns.clear()
            self._metrics.clear()
            self._count = 0
        for part in _cut(self._logs):
            self._emit(b"l", wire.logs_request(self.resource, part))
        self._logs.clear()


def _cut(items: list[bytes]) -> Iterator[list[bytes]]:
    """Cut a list of encoded items into lists of at most MAX_BYTES (a larger item stands alone)."""
    part: list[bytes] = []
    size = 0
    for item in items:
        if part and size + len(item) > MAX_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item)
    if part:
        yield part

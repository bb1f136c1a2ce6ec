"""From records to a receiver: builds OTLP requests, spools them, sends them from a thread.

Delivery is at least once. The database keeps one value per (run, metric, process, step), the one
of the latest attempt, so it ends up holding each exactly once.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gaia_metrics import wire
from gaia_metrics.errors import MetricsError
from gaia_metrics.spool import Spool
from gaia_metrics.transport import ExportSettings, Transport, connect

MAX_POINTS = 20_000  # per request: 0.7 MB; a collector's gRPC server takes 4 MiB
MAX_TEXT = 64 << 10  # characters of one text in the database; the run folder keeps all of it
BACKOFF_S = (1.0, 60.0)
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
        body = record["text"][:MAX_TEXT]
        self._logs.append(wire.log_record(time_ns, level, "gaia.run", body, values))

    def info(self, time_ns: int, start_ns: int, values: Mapping[str, wire.Scalar]) -> None:
        """Take the run's facts: the runs table is made from them."""
        point = wire.info_point(time_ns, start_ns, values)
        self._metrics.append(wire.gauge("gaia.run.info", point))

    def raw(self, request: bytes) -> None:
        """Pass on a metrics request that the OpenTelemetry SDK made."""
        self._emit(b"m", request)

    def flush(self) -> None:
        """Emit what was collected."""
        if self._points or self._metrics:
            metrics = [wire.gauge(name, b"".join(p)) for name, p in self._points.items()]
            self._emit(b"m", wire.metrics_request(self.resource, [*metrics, *self._metrics]))
            self._points.clear()
            self._columns.clear()
            self._metrics.clear()
            self._count = 0
        if self._logs:
            self._emit(b"l", wire.logs_request(self.resource, self._logs))
            self._logs.clear()


class Sender:
    """The thread that empties a spool into a receiver.

    Args:
        spool: where requests come from.
        settings: where they go.
        warn: called as warn(key, problem, remedy).
    """

    def __init__(
        self, spool: Spool, settings: ExportSettings, warn: Callable[[str, str, str], None]
    ) -> None:
        self._spool, self._settings, self._warn = spool, settings, warn
        self.wake = threading.Event()
        self.sent_requests = self.sent_bytes = 0
        self.failing = ""  # what went wrong last, "" while all is well
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="gaia-metrics-send", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Send what is left for at most `timeout` seconds; True where all of it arrived."""
        self._stop_at = time.monotonic() + timeout
        self.wake.set()
        self._thread.join(timeout + 1.0)
        return self._spool.pending_bytes == 0

    def _run(self) -> None:
        try:
            transport = connect(self._settings)
        except MetricsError as error:
            self.failing = error.problem
            self._warn("export-setup", error.problem, error.remedy)
            return
        delay = BACKOFF_S[0]
        while True:
            wait = self._send_all(transport, delay)
            if self._over():
                transport.close()
                return
            if wait:  # failing: wait, longer each time, whatever is appended meanwhile
                self._sleep(wait)
                delay = min(delay * 2, BACKOFF_S[1])
            else:
                delay = BACKOFF_S[0]
                self.wake.wait(1.0)
            self.wake.clear()

    def _over(self) -> bool:
        stop_at = self._stop_at
        return stop_at is not None and (
            time.monotonic() >= stop_at or self._spool.pending_bytes == 0
        )

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over():
            if self._stop_at is not None:
                left = min(left, 0.2)
            time.sleep(min(left, 0.5))

    def _send_all(self, transport: Transport, delay: float) -> float:
        """Send until the spool is empty (0) or something fails (seconds to wait)."""
        while not (self._stop_at is not None and time.monotonic() >= self._stop_at):
            try:
                frame = self._spool.peek()
            except OSError as error:
                self._warn("spool", f"the spool cannot be read: {error}", "check the disk")
                return delay
            if frame is None:
                return 0.0
            outcome = transport.send(*frame)
            if outcome.kind == "ok":
                if outcome.detail:
                    self._warn("partial", outcome.detail, "see the receiver's log")
                self._spool.acknowledge()
                self.sent_requests += 1
                self.sent_bytes += len(frame[1])
                self.failing = ""
            elif outcome.kind == "rejected":
                where = self._spool.set_aside()
                self._warn(
                    "rejected",
                    f"{self._settings.endpoints[frame[0]]} refuses a batch ({outcome.detail})",
                    f"it is kept as {where.name}; run `gaia-metrics doctor`",
                )
            else:
                self._report(outcome.kind, outcome.detail, frame[0])
                return max(outcome.retry_after, delay * random.uniform(0.8, 1.2))
        return 0.0

    def _report(self, kind: str, detail: str, signal: bytes) -> None:
        self.failing = detail
        where = self._settings.endpoints[signal]
        if kind == "denied" and "certificate" in detail:
            remedy = "set OTEL_EXPORTER_OTLP_CERTIFICATE to the authority's PEM file"
        elif kind == "denied":
            remedy = "check the token in OTEL_EXPORTER_OTLP_HEADERS"
        else:
            remedy = "metrics are kept on disk and sent when it answers, or by `gaia-metrics sync`"
        self._warn(f"send-{kind}", f"{where} did not take metrics ({detail})", remedy)


class Exporter:
    """The worker's sink for a receiver: Builder -> Spool -> Sender."""

    def __init__(
        self,
        folder: Path,
        process: int,
        resource: Mapping[str, wire.Scalar],
        settings: ExportSettings,
        warn: Callable[[str, str, str], None],
    ) -> None:
        limit = int(os.environ.get("GAIA_METRICS_SPOOL_MB", "8192")) << 20
        self.spool = Spool(folder, process, limit)
        self.builder = Builder(resource, self._emit)
        self.sender = Sender(self.spool, settings, warn)
        self.lost_requests = 0
        self._warn = warn

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Take one `log()`."""
        self.builder.values(step, time_ns, values, system)

    def record(self, record: dict) -> None:
        """Take a text, histogram or alert."""
        self.builder.record(record)

    def flush(self, fsync: bool) -> None:
        """Spool what was collected and wake the sender."""
        self.builder.flush()
        self.sender.wake.set()
        if self.spool.dropped_files:
            self._warn(
                "spool-full",
                "the spool is full: its oldest requests were dropped",
                "raise GAIA_METRICS_SPOOL_MB; `gaia-metrics sync RUN --all` sends them again",
            )

    def _emit(self, signal: bytes, request: bytes) -> None:
        try:
            self.spool.append(signal, request)
        except OSError as error:
            self.lost_requests += 1
            self._warn(
                "spool-disk",
                f"the spool cannot be written: {error}",
                "free space; `gaia-metrics sync RUN --all` sends what was missed",
            )

    def close(self, timeout: float) -> bool:
        """Send what is left; True where all of it arrived."""
        self.builder.flush()
        arrived = self.sender.stop(timeout)
        self.spool.close()
        return arrived and not self.lost_requests

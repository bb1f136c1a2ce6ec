"""Sending of runs recorded without a receiver, and of batches that none has acknowledged yet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia_metrics.errors import MetricsError
from gaia_metrics.sending import facts, spool
from gaia_metrics.sending.builder import Builder
from gaia_metrics.sending.outcome import Transport
from gaia_metrics.sending.sender import denied_remedy
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.transport import connect
from gaia_metrics.storage import folder, segments


@dataclass
class Report:
    """Result of sending one run.

    Attributes:
        run: run id.
        requests, points: what arrived.
        skipped: why nothing was done, or "".
        refused: requests that the receiver still refuses.
    """

    run: str
    requests: int = 0
    points: int = 0
    skipped: str = ""
    refused: int = 0


def sync(path: Path, env: Mapping[str, str], everything: bool = False) -> list[Report]:
    """Send the runs at or below `path` to the endpoint in `env`.

    Sending twice does no harm: the database keeps one value per (run, metric, process, step).

    Args:
        everything: send each segment, also those that an endpoint took while the run was live.

    Raises:
        MetricsError: no endpoint is set, there is no run, or the receiver does not take the data.
    """
    settings = ExportSettings.from_env(env)
    if settings is None:
        raise MetricsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is not set", "set it to the receiver's address"
        )
    if b"l" not in settings.endpoints:
        raise MetricsError(
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set alone, and runs hold texts",
            "set OTEL_EXPORTER_OTLP_ENDPOINT",
        )
    runs = [p.parent for p in sorted(path.rglob("run.json"))]
    if not runs:
        raise MetricsError(f"{path} holds no run", "give a run folder or the folder above")
    transport = connect(settings)
    try:
        return [_sync_run(run, transport, everything) for run in runs]
    finally:
        transport.close()


def _sync_run(path: Path, transport: Transport, everything: bool) -> Report:
    info = folder.read_json(path / "run.json")
    report = Report(info["id"])
    metrics = path / "metrics"
    lock = folder.FolderLock(metrics, 0)
    if not lock.held:
        report.skipped = "it is being recorded right now, and sends for itself"
        lock.release()
        return report
    try:
        _replay_spool(metrics / "spool", transport, report)
        _send_segments(info, metrics, transport, report, everything)
    finally:
        lock.release()
    return report


def _deliver(transport: Transport, signal: bytes, request: bytes, report: Report) -> None:
    outcome = transport.send(signal, request)
    for attempt in range(4):
        if outcome.kind != "retry":
            break
        time.sleep(0.5 * 2**attempt)
        outcome = transport.send(signal, request)
    if outcome.kind == "ok":
        report.requests += 1
        return
    if outcome.kind == "denied":
        remedy = denied_remedy(outcome.detail)
    elif outcome.kind == "rejected":
        remedy = "see the receiver's log"
    else:
        remedy = "start the receiver and run the command again"
    raise MetricsError(f"the receiver did not take the metrics ({outcome.detail})", remedy)


def _replay_spool(path: Path, transport: Transport, report: Report) -> None:
    if not path.is_dir():
        return
    for process in sorted({int(p.name[1:].split("-")[0]) for p in spool.paths(path)}):
        waiting = spool.Spool(path, process, limit_bytes=1 << 62)
        while (frame := waiting.peek()) is not None:
            _deliver(transport, *frame, report)
            waiting.acknowledge()
        waiting.close()
    for refused in spool.refused(path):
        signal, request = spool.read_refused(refused)
        outcome = transport.send(signal, request)
        if outcome.kind == "ok":
            report.requests += 1
            refused.unlink(missing_ok=True)
        elif outcome.kind == "rejected":
            report.refused += 1


def _send_segments(
    info: dict, metrics: Path, transport: Transport, report: Report, everything: bool
) -> None:
    """Send segments recorded without an endpoint; synced.json remembers those that arrived."""
    marker = metrics / "synced.json"
    done = folder.read_json(marker)
    attempts = {a["attempt"]: a for a in info.get("attempts", [])}
    last_steps: dict[int, int] = {}  # by attempt, over its segments
    for path in segments.paths(metrics):
        size = path.stat().st_size
        reader = segments.SegmentReader(path)
        records = reader.read()
        header = next(records, None)
        if header is None or (done.get(path.name) == size and not everything):
            continue
        if header.data.get("exported") and not everything:
            continue
        attempt = attempts.get(header.data["attempt"], header.data)
        resource = facts.resource(info, attempt, header.data["process"])

        def emit(signal: bytes, request: bytes) -> None:
            _deliver(transport, signal, request, report)

        builder = Builder(resource, emit)
        number = attempt["attempt"]
        for record in records:
            if header.data["process"] == 0:
                last_steps[number] = max(last_steps.get(number, -1), record.step)
            _add(builder, record, report)
        if header.data["process"] == 0:  # the run's facts are process 0's, as while recording
            status = info.get("status", "stopped")
            values: dict[str, Any] = facts.info(info, attempt, status, last_steps.get(number, -1))
            newest = number == max(attempts, default=0)
            ended = info.get("ended", 0.0) if newest else 0.0  # the newest attempt's facts stay
            when = int(max(ended, attempt["started"]) * 1e9)
            builder.info(when, int(attempt["started"] * 1e9), values)
        builder.flush()
        done[path.name] = size
        with contextlib.suppress(OSError):  # a read-only folder is sent again next time
            folder.write_json(marker, done)


def _add(builder: Builder, record: segments.Record, report: Report) -> None:
    if record.kind in ("values", "system"):
        builder.values(record.step, record.time_ns, record.data, record.kind == "system")
        report.points += len(record.data)
    else:
        builder.record(record.data)

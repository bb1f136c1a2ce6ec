"""Sending of segments and batches that no receiver has acknowledged yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia_metrics.errors import FormatError, MetricsError
from gaia_metrics.sending import arrivals, facts, spool
from gaia_metrics.sending.builder import Builder
from gaia_metrics.sending.outcome import Transport
from gaia_metrics.sending.sender import denied_remedy
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.transport import connect
from gaia_metrics.storage import folder, segments

DAMAGED = "damaged: "


@dataclass
class Report:
    """Result of sending one run.

    Attributes:
        run: run id.
        requests, points: what arrived; points of segments that arrived whole.
        skipped: why nothing was done, or "damaged: …" where a part could not be read; "" else.
        refused: requests that the receiver refuses; they are kept and sent again next time.
        left_out: points that the receiver did not take of requests that it accepted. Their
            segments do not count as arrived, so the next sync sends them again.
    """

    run: str
    requests: int = 0
    points: int = 0
    skipped: str = ""
    refused: int = 0
    left_out: int = 0

    @property
    def damaged(self) -> bool:
        """True where something of the run could not be read."""
        return self.skipped.startswith(DAMAGED)


def check(reports: Sequence[Report]) -> None:
    """Raise MetricsError where something of the runs has not arrived."""
    refused = sum(report.refused for report in reports)
    left_out = sum(report.left_out for report in reports)
    problems = [f"the receiver refuses {refused} batches"] if refused else []
    problems += [f"the receiver left out {left_out} points"] if left_out else []
    remedy = "see its log; what has not arrived is kept and sent again by the next sync"
    damaged = sum(report.damaged for report in reports)
    if damaged:
        remedy = "see `gaia-metrics doctor`" if not problems else f"{remedy}; and see `doctor`"
        problems.append(f"{damaged} runs are damaged")
    if problems:
        raise MetricsError(f"{', '.join(problems)}; all others were sent", remedy)


def sync(path: Path, env: Mapping[str, str], everything: bool = False) -> list[Report]:
    """Send the runs at or below `path` to the endpoint in `env`.

    Sending twice does no harm: the database keeps one value per (run, metric, process, step).

    Args:
        everything: send each segment, also those that a receiver has acknowledged.

    Raises:
        MetricsError: no endpoint is set, there is no run, or the receiver takes nothing. A single
            batch that it refuses is counted, and the others are sent.
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
    """Send one run; what is damaged about it is told of and holds no other run up."""
    report = Report(path.name)
    try:
        _send_run(path, transport, everything, report)
    except KeyError as error:
        report.skipped = f"{DAMAGED}{path}/run.json has no {error}"
    except FormatError as error:
        report.skipped = f"{DAMAGED}{error.problem}"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        report.skipped = f"{DAMAGED}{path} cannot be read ({error})"
    return report


def _send_run(path: Path, transport: Transport, everything: bool, report: Report) -> None:
    info = folder.read_json(path / "run.json")
    report.run = info["id"]
    metrics = path / "metrics"
    if not metrics.is_dir():
        report.skipped = f"{DAMAGED}{metrics} is missing"
        return
    with folder.all_locked(metrics) as free:  # the spools of all processes are emptied here
        if not free:
            report.skipped = "it is being recorded right now, and sends for itself"
            return
        _replay_spool(metrics / "spool", transport, report)
        _send_segments(info, metrics, transport, report, everything)


def _deliver(transport: Transport, signal: bytes, request: bytes, report: Report) -> bool:
    """Send a request; False where the receiver refuses these very bytes, which is counted.

    True where it takes a part of it too: OTLP forbids to send such a request again.

    Raises MetricsError where it takes nothing at all.
    """
    outcome = transport.send(signal, request)
    for attempt in range(4):
        if outcome.kind != "retry":
            break
        time.sleep(0.5 * 2**attempt)
        outcome = transport.send(signal, request)
    if outcome.kind == "ok":
        report.left_out += outcome.left_out
        report.requests += not outcome.left_out
        return True
    if outcome.kind == "rejected":
        report.refused += 1
        return False
    remedy = "start the receiver and run the command again"
    if outcome.kind == "denied":
        remedy = denied_remedy(outcome.detail)
    raise MetricsError(f"the receiver did not take the metrics ({outcome.detail})", remedy)


def _replay_spool(path: Path, transport: Transport, report: Report) -> None:
    if not path.is_dir():
        return
    for refused in spool.refused(path):
        if _deliver(transport, *spool.read_refused(refused), report):
            refused.unlink(missing_ok=True)
    for process in sorted({int(p.name[1:].split("-")[0]) for p in spool.paths(path)}):
        waiting = spool.Spool(path, process, limit_bytes=1 << 62)
        while (frame := waiting.peek()) is not None:
            if _deliver(transport, *frame, report):
                waiting.acknowledge()
            else:
                waiting.set_aside()
        waiting.close()


def _send_segments(
    info: dict, metrics: Path, transport: Transport, report: Report, everything: bool
) -> None:
    """Send segments that no receiver has acknowledged, and note those that arrive whole."""
    done = arrivals.acknowledged(metrics)
    last_steps: dict[int, int] = {}  # of process 0 by attempt, over its segments
    for path in segments.paths(metrics):
        reader = segments.SegmentReader(path)
        records = reader.read()
        header = next(records, None)
        if header is None or (done.get(path.name) == path.stat().st_size and not everything):
            continue
        if header.kind != "header":  # which says whose attempt it is
            report.skipped = f"{DAMAGED}{path} has lost its header"
            continue
        lost_before, points, whole = report.refused + report.left_out, report.points, False
        try:
            _send_segment(info, header.data, records, last_steps, transport, report)
            whole = report.refused + report.left_out == lost_before
        finally:
            if not whole:  # its other requests are counted, and it is sent again
                report.points = points
        if reader.damaged:  # sent but for what cannot be read, and said each time
            report.skipped = f"{DAMAGED}{path}: a part of it cannot be read"
        elif whole:
            arrivals.note(metrics, [path])


def _send_segment(
    info: dict,
    header: dict,
    records: Iterator[segments.Record],
    last_steps: dict[int, int],
    transport: Transport,
    report: Report,
) -> None:
    attempt, first = header, header["process"] == 0
    attempts = {a["attempt"]: a for a in info.get("attempts", [])}
    if first:  # run.json is process 0's; the others count their starts themselves
        attempt = attempts.get(header["attempt"], header)
    resource = facts.resource(info, attempt, header["process"])

    def emit(signal: bytes, request: bytes) -> None:
        _deliver(transport, signal, request, report)

    builder = Builder(resource, emit)
    number = attempt["attempt"]
    for record in records:
        if first:
            last_steps[number] = max(last_steps.get(number, -1), record.step)
        _add(builder, record, report)
    if first:  # the run's facts are process 0's, as while recording
        status = info.get("status", "stopped")
        values: dict[str, Any] = facts.info(info, attempt, status, last_steps.get(number, -1))
        newest = number == max(attempts, default=0)
        ended = info.get("ended", 0.0) if newest else 0.0  # the newest attempt's facts stay
        when = int(max(ended, attempt["started"]) * 1e9)
        builder.info(when, int(attempt["started"] * 1e9), values)
    builder.flush()


def _add(builder: Builder, record: segments.Record, report: Report) -> None:
    if record.kind in ("values", "system"):
        builder.values(record.step, record.time_ns, record.data, record.kind == "system")
        report.points += len(record.data)
    else:
        builder.record(record.data)

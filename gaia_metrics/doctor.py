"""`gaia-metrics doctor`: problems of recording and sending, each with its remedy."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gaia.extras import install
from gaia_metrics.errors import MetricsError
from gaia_metrics.sending import spool
from gaia_metrics.storage import folder, segment_writer, segments

LOW_DISK = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One result of the examination.

    Attributes:
        level: "ok", "note" or "problem".
        fact: the sentence to show, naming file and figure.
        remedy: the command or change that mends it, or "".
    """

    level: str
    fact: str
    remedy: str = ""

    def as_dict(self) -> dict:
        """Return the finding as `--json` prints it."""
        return asdict(self)


def examine(path: Path, env: Mapping[str, str]) -> list[Finding]:
    """Examine the installed extras, the receiver, and every run at or below `path`."""
    findings = _extras() + _receiver(env) + _disk(path)
    runs = [p.parent for p in sorted(path.rglob("run.json"))] if path.is_dir() else []
    if not runs:
        findings.append(Finding("note", f"{path} holds no run", "give the folder of your runs"))
    for run in runs:
        of_run = [finding for look in _LOOKS for finding in _safely(look, run)]
        findings += of_run or [Finding("ok", f"{run}: whole")]
    return findings


def _extras() -> list[Finding]:
    wanted = {
        "metrics": ("google_crc32c", "psutil", "grpc", "opentelemetry.sdk"),
        "ui": ("duckdb", "pyarrow", "numpy", "pandas"),
    }
    findings = []
    for extra, modules in wanted.items():
        missing = [m for m in modules if not _installed(m)]
        if missing:
            fact = f"not installed: {', '.join(missing)}"
            findings.append(Finding("note", fact, f"if you need them, {install(extra)}"))
        else:
            findings.append(Finding("ok", f"extra `{extra}` is installed"))
    return findings


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _receiver(env: Mapping[str, str]) -> list[Finding]:
    from gaia_metrics.sending import wire
    from gaia_metrics.sending.sender import denied_remedy
    from gaia_metrics.sending.settings import ExportSettings
    from gaia_metrics.sending.transport import connect

    try:
        settings = ExportSettings.from_env(env)
        if settings is None:
            return [Finding("ok", "no OTEL_EXPORTER_OTLP_ENDPOINT: runs are recorded locally")]
        transport = connect(settings)
        outcome = transport.send(b"m", wire.metrics_request({}, []))
        transport.close()
    except MetricsError as error:
        return [Finding("problem", error.problem, error.remedy)]
    where = settings.endpoints[b"m"]
    if outcome.kind == "ok":
        return [Finding("ok", f"{where} takes metrics ({settings.protocol})")]
    remedy = "start it, or check address and port"
    if outcome.kind == "denied":
        remedy = denied_remedy(outcome.detail)
    return [Finding("problem", f"{where} does not take metrics: {outcome.detail}", remedy)]


def _disk(path: Path) -> list[Finding]:
    """Check that runs can be recorded below `path` at all."""
    there = path.absolute()
    while not there.exists():  # init makes the folders that are missing
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = "make it writable, or pass another dir"
        return [Finding("problem", f"{there} cannot be written: {error.strerror}", remedy)]
    free = shutil.disk_usage(there).free
    if free < LOW_DISK:
        remedy = "free space: a full disk holds metrics and checkpoints back"
        return [Finding("problem", f"{there}: {free / 1e6:.0f} MB free", remedy)]
    return [Finding("ok", f"{there} can be written, {free / 1e9:.0f} GB free")]


def _safely(look: Callable[[Path], list[Finding]], run: Path) -> list[Finding]:
    try:
        return look(run)
    except MetricsError as error:
        return [Finding("problem", error.problem, error.remedy)]
    except (OSError, ValueError, KeyError) as error:
        return [Finding("problem", f"{run}: {type(error).__name__}: {error}", "")]


def _look_status(run: Path) -> list[Finding]:
    status = folder.read_json(run / "status.json")
    findings = [Finding("problem", f"{run}: {text}") for text in status.get("warnings", [])]
    if status.get("dropped"):
        fact = f"{run}: {status['dropped']} values were dropped"
        findings.append(Finding("problem", fact, "log less often or free the disk"))
    silent = time.time() - status.get("time", 0.0)
    if status.get("status") == "running" and silent > 60:
        fact = f"{run}: still marked running, silent for {silent / 60:.0f} minutes"
        findings.append(Finding("problem", fact, "the process is gone: resume it with --resume"))
    return findings


def _look_spool(run: Path) -> list[Finding]:
    waiting = run / "metrics" / "spool"
    if not waiting.is_dir():
        return []
    findings = []
    size = sum(p.stat().st_size for p in spool.paths(waiting))
    if size:
        fact = f"{run}: {size / 1e6:.1f} MB wait to be sent"
        findings.append(Finding("problem", fact, f"run `gaia-metrics sync {run}`"))
    rejected = len(spool.refused(waiting))
    if rejected:
        fact = f"{run}: the receiver refused {rejected} batches (metrics/spool/rejected-*)"
        remedy = f"see its log; once it is mended, run `gaia-metrics sync {run}`"
        findings.append(Finding("problem", fact, remedy))
    return findings


def _look_segments(run: Path) -> list[Finding]:
    lines = _lines(run)  # first: the segments are always ahead of it, also while it is recorded
    findings, values = [], set()
    for path in segments.paths(run / "metrics"):
        reader = segments.SegmentReader(path)
        steps = {r.step for r in reader.read() if r.kind == "values"}
        if path.name.startswith("p0-"):
            values |= steps
        findings += _damage(path, reader)
    for path in segment_writer.damaged_copies(run / "metrics"):
        remedy = "put a whole copy of the segment in its place, or delete the .damaged file"
        findings.append(Finding("problem", f"{path}: the disk had damaged this segment", remedy))
    if lines is None:
        return findings
    if None in lines:
        findings.append(Finding("note", f"{run}/metrics.jsonl has a torn line", ""))
    steps = [step for step in lines if step is not None]
    if len(steps) != len(set(steps)):
        fact = f"{run}/metrics.jsonl has two lines of one step"
        findings.append(Finding("problem", fact, "it is derived anew when the run resumes"))
    if values and (more := len(set(steps) - values)):
        fact = f"{run}/metrics.jsonl has {more} steps that the segments lack"
        remedy = "it keeps them; a backup or mirror of the segments has the rest of those steps"
        findings.append(Finding("problem", fact, remedy))
    return findings


def _damage(path: Path, reader: segments.SegmentReader) -> list[Finding]:
    """Tell a segment's damage, which is a problem, from an end that a kill has torn."""
    spots = list(reader.damaged)
    if reader.rest and not reader.torn:
        spots.append((reader.offset, reader.rest))
    if spots:
        lost = sum(size for _, size in spots)
        fact = f"{path}: {lost} bytes at {spots[0][0]} are damaged"
        if reader.unreadable:
            fact += f", with the names of {reader.unreadable} records"
        remedy = "check the disk, and put a whole copy from a backup or mirror in its place"
        return [Finding("problem", fact, remedy)]
    if reader.rest:
        fact = f"{path}: {reader.rest} bytes behind {reader.offset} are torn"
        remedy = "a torn end is normal after a kill, and dropped when the run resumes"
        return [Finding("note", fact, remedy)]
    return []


def _lines(run: Path) -> list[int | None] | None:
    """List the steps of metrics.jsonl, None for a torn line; None where there is no file."""
    if not (run / "metrics.jsonl").exists():
        return None
    steps: list[int | None] = []
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            steps.append(None)
    return steps


_LOOKS = (_look_status, _look_spool, _look_segments)

"""Foreign runs written as run folders, each one whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaia_metrics.config import redact
from gaia_metrics.errors import FormatError, MetricsError
from gaia_metrics.importing import event_files, wandb_runs
from gaia_metrics.importing.source import ForeignRun, Progress, Start, Values
from gaia_metrics.redaction import redact_text
from gaia_metrics.storage import folder, jsonl, segment_writer, segments

FINDERS = {"wandb": wandb_runs.find, "tensorboard": event_files.find}
BUFFERED = 4096  # items between two writes
MAX_NAME = 100
EARLIEST = 946684800.0  # 2000-01-01


@dataclass
class Report:
    """Result of importing one run.

    Attributes:
        run, name: its id and name here.
        status: imported, updated, unchanged, or why nothing was done.
        values, records: numbers, and texts, histograms and alerts.
        skipped: kinds that cannot be kept, with their counts.
        path: the run folder.
    """

    run: str
    name: str
    status: str
    values: int = 0
    records: int = 0
    skipped: str = ""
    path: str = ""


def import_runs(
    kind: str,
    path: Path,
    root: Path,
    say: Callable[[str], None] = lambda line: None,
    dry_run: bool = False,
) -> Iterator[Report]:
    """Import the runs at or below `path` into run folders below `root`.

    A run that was imported before is left alone, or imported anew where its files have grown.

    Args:
        kind: "wandb" or "tensorboard".
        say: takes a line on the progress about every two seconds.
        dry_run: find and compare only.

    Raises:
        MetricsError: there is nothing at `path`, or nothing readable in its only run.
    """
    if not path.exists():
        raise MetricsError(f"{path} does not exist", "check the path")
    runs = FINDERS[kind](path)
    total = sum(file.stat().st_size for run in runs for file in run.files)
    meter = _Meter(total, len(runs), say)
    known = _known(root)
    for run in runs:
        meter.begin(run.name)
        sizes = {file.name: file.stat().st_size for file in run.files}
        before = known.get(_digest(run))
        status = _status(before, sizes)
        if before is not None and status not in ("updated", "imported"):
            meter.skip(sum(sizes.values()))
            info = folder.read_json(before / "run.json")
            yield Report(info["id"], info["name"], status, path=str(before))
        elif dry_run:
            yield Report("", run.name, f"would be {status}")
        else:
            try:
                yield _import(run, root, before, sizes, status, meter.add)
            except FormatError as error:
                _leave_nothing(root, run)
                if len(runs) == 1:
                    raise
                yield Report("", run.name, f"left out: {error.problem}")


def _leave_nothing(root: Path, run: ForeignRun) -> None:
    """Delete what was begun of a run whose files cannot be read, and a folder made for it."""
    shutil.rmtree(_work(root, run), ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        root.rmdir()


def _work(root: Path, run: ForeignRun) -> Path:
    """Return the folder that a run is written in until it is whole."""
    return root / f".importing-{_digest(run)}"


def _known(root: Path) -> dict[str, Path]:
    """Find the runs that were imported before, by the digest of what they were."""
    known = {}
    for path in root.glob("*/run.json"):
        try:
            imported = folder.read_json(path).get("imported", {})
        except MetricsError:  # a damaged neighbour
            continue
        if imported and not path.parent.name.startswith("."):
            known[imported["source"]] = path.parent
    return known


def _digest(run: ForeignRun) -> str:
    return hashlib.sha256("\0".join(run.identity).encode()).hexdigest()[:16]


def _status(before: Path | None, sizes: dict[str, int]) -> str:
    if before is None:
        return "imported"
    info = folder.read_json(before / "run.json")
    if len(info["attempts"]) != info["imported"]["attempts"]:
        return "left alone: it was gone on with here"
    return "unchanged" if info["imported"]["files"] == sizes else "updated"


def _import(
    run: ForeignRun,
    root: Path,
    before: Path | None,
    sizes: dict[str, int],
    status: str,
    progress: Progress,
) -> Report:
    digest = _digest(run)
    work = _work(root, run)
    shutil.rmtree(work, ignore_errors=True)  # of an interrupted import
    try:
        (work / "metrics").mkdir(parents=True)
    except OSError as error:
        raise MetricsError(
            f"{root} cannot be written ({error.strerror})",
            "make it writable, or pass another --dir",
        ) from error
    writer = _Writer(run, work)
    writer.take(progress)
    info = writer.facts()
    info["imported"] = {"source": digest, "files": sizes, "attempts": len(writer.attempts)}
    target = before or _free(root, info)
    jsonl.derive(segments.read_all(work / "metrics", 0), work / "metrics.jsonl")
    folder.write_json(work / "run.json", info)
    if before is not None:
        aside = root / f".replaced-{digest}"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(before, aside)
    os.rename(work, target)
    if before is not None:
        shutil.rmtree(root / f".replaced-{digest}", ignore_errors=True)
    skipped = ", ".join(f"{count} {kind}" for kind, count in sorted(run.skipped.items()))
    return Report(
        info["id"], info["name"], status, writer.values, writer.records, skipped, str(target)
    )


def _free(root: Path, info: dict[str, Any]) -> Path:
    """Choose a folder that is not there yet."""
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in info["name"])[:MAX_NAME]
    name = name.lstrip(".") or info["id"]
    return root / (f"{name}-{info['id'][-8:]}" if (root / name).exists() else name)


class _Writer:
    """Writes a foreign run's items as segments."""

    def __init__(self, run: ForeignRun, path: Path) -> None:
        self._run, self._metrics = run, path / "metrics"
        self._segments: segment_writer.SegmentWriter | None = None
        self.attempts: list[folder.Attempt] = []
        self.values = self.records = 0
        self._ended = 0.0
        self._id = ""

    def take(self, progress: Progress) -> None:
        """Read the run to its end."""
        for count, item in enumerate(self._run.read(progress), 1):
            if isinstance(item, Start):
                self._start(item)
                continue
            assert self._segments is not None, "a run begins with a Start"
            if isinstance(item, Values):
                kind = b"S" if item.system else b"V"
                self._segments.values(max(0, item.step), item.time_ns, item.values, kind)
                self.values += len(item.values)
                self._ended = max(self._ended, item.time_ns / 1e9)
            else:
                self._keep(self._segments, item)
            if count % BUFFERED == 0:
                self._segments.flush(fsync=False)
        if self._segments is None:
            self._start(Start(-1, int(self._run.started * 1e9)))
        assert self._segments is not None
        self._segments.close()

    def _keep(self, writer: segment_writer.SegmentWriter, record: dict[str, Any]) -> None:
        for field in ("name", "text"):
            if field in record:
                record[field] = redact_text(record[field])
        writer.json(record | {"step": max(0, record["step"]), "seq": self.records})
        self.records += 1
        self._ended = max(self._ended, record["time_ns"] / 1e9)

    def _start(self, start: Start) -> None:
        """Begin an attempt; what earlier ones hold of later steps is cut, as when resuming."""
        if self._segments is not None:
            self._segments.close()
            segment_writer.repair(self._metrics, 0, start.resume_step)
        number, begun = len(self.attempts) + 1, start.time_ns / 1e9
        self._id = self._id or _run_id(self._run, begun)
        self.attempts.append(
            folder.Attempt(number, start.resume_step, begun, self._run.host, pid=0)
        )
        header = asdict(self.attempts[-1]) | {
            "run_id": self._id,
            "process": 0,
            "time_ns": start.time_ns,
        }
        self._segments = segment_writer.SegmentWriter(self._metrics, 0, header)
        self._ended = max(self._ended, begun)

    def facts(self) -> dict[str, Any]:
        """Make run.json's content."""
        run = self._run
        attempts = [asdict(attempt) | {"host": run.host} for attempt in self.attempts]
        return {
            "id": self._id,
            "project": run.project or "imported",
            "name": run.name,
            "tags": [redact_text(tag) for tag in run.tags],
            "notes": redact_text(run.notes),
            "config": redact(run.config),
            "status": run.status,
            "attempts": attempts,
            "ended": self._ended,
            "git": {"commit": run.commit} if run.commit else {},
        }


def _run_id(run: ForeignRun, started: float) -> str:
    """Make an id that is the same at each import; ids of this package begin with 20YY."""
    return time.strftime("%Y%m%d", time.gmtime(max(started, EARLIEST))) + "-" + _digest(run)[:8]


class _Meter:
    """Tells of progress by bytes, with the time that is left."""

    def __init__(self, total: int, runs: int, say: Callable[[str], None]) -> None:
        self._total, self._runs, self._say = max(1, total), runs, say
        self._done = self._worked = self._number = 0
        self._name = ""
        self._began = self._told = time.monotonic()

    def begin(self, name: str) -> None:
        """Go on to the next run."""
        self._number, self._name = self._number + 1, name

    def skip(self, size: int) -> None:
        """Count bytes that need no work: they say nothing about the speed."""
        self._done += size

    def add(self, size: int) -> None:
        """Count bytes that were read."""
        self._done, self._worked = self._done + size, self._worked + size
        now = time.monotonic()
        if now - self._told > 2.0:
            self._told = now
            left = (self._total - self._done) * (now - self._began) / max(1, self._worked)
            self._say(
                f"run {self._number} of {self._runs} ({self._name}): "
                f"{100 * self._done // self._total}%, {left:.0f} s left"
            )

"""The start of a recording: check, claim the run folder, repair and cut it, note the attempt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gaia_metrics.errors import MetricsError
from gaia_metrics.storage import folder, jsonl, segment_writer, segments

Warn = Callable[[str, str, str], None]


@dataclass
class Opened:
    """A run folder that is ready to be written.

    Attributes:
        dir: the folder, which is not the wanted one where another process writes that.
        info: run.json's content.
        attempt: this start.
        lock: None where the folder cannot be written.
        writer: the segments, or None.
        derived: metrics.jsonl (process 0 only), or None.
    """

    dir: Path
    info: dict
    attempt: folder.Attempt = field(init=False)
    lock: folder.FolderLock | None = None
    writer: segment_writer.SegmentWriter | None = None
    derived: jsonl.JsonlFile | None = None


def check_resume(path: Path, known: dict, resume: str, run_id: str | None) -> None:
    """Raise MetricsError where the arguments and what the folder holds contradict each other."""
    if resume not in ("allow", "must", "never"):
        raise MetricsError(f"resume={resume!r}", "use 'allow', 'must' or 'never'")
    if resume == "must" and not known:
        raise MetricsError(f"resume='must', but {path} holds no run", "check dir, or allow it")
    if resume == "never" and known:
        raise MetricsError(
            f"resume='never', but {path} holds run {known.get('id')}", "choose another dir"
        )
    if run_id is not None:
        folder.check_run_id(run_id)
        if known and known.get("id") != run_id:
            raise MetricsError(
                f"run_id={run_id!r}, but {path} holds run {known.get('id')}", "choose another dir"
            )


def check_process(
    path: Path, known: dict, process: int, run_id: str | None, attempt: int | None
) -> None:
    """Raise MetricsError where this process would make up what is process 0's to say."""
    if attempt is not None and (process == 0 or attempt < 1):
        remedy = "give the others run.attempt of process 0, which counts them itself"
        raise MetricsError(f"attempt={attempt} of process_index={process}", remedy)
    if process > 0 and run_id is None and not known.get("id"):
        raise MetricsError(
            f"process_index={process} needs run_id, as {path} holds no run yet",
            "give all processes one run_id: that of process 0's run, broadcast, or your own",
        )


def open_folder(
    path: Path,
    info: dict,
    process: int,
    resume_step: int | None,
    attempt: int | None,
    warn: Warn,
) -> Opened:
    """Open the folder of a run; a folder that cannot be written is a warning, no error.

    Args:
        path: the run folder.
        info: run.json's content, of a new run or of the one that goes on.
        process: process index; process 0 writes run.json and metrics.jsonl.
        resume_step: later steps are cut; None goes on behind the last one.
        attempt: number of this start; None counts those before it.
        warn: called as warn(key, problem, remedy).
    """
    opened = Opened(path, info)
    try:
        _open(opened, process, resume_step, attempt, warn)
    except OSError as error:
        warn(
            "folder",
            f"{opened.dir} cannot be written ({error}): metrics are not kept on this disk",
            "make the folder writable or pass another dir",
        )
        opened.writer = opened.derived = None
        resume_step = -1 if resume_step is None else resume_step
        opened.info, opened.attempt = folder.add_attempt(opened.info, resume_step, attempt)
    return opened


def _open(
    opened: Opened, process: int, resume_step: int | None, number: int | None, warn: Warn
) -> None:
    metrics = _claim(opened, process, warn)
    if opened.lock is not None and opened.info["id"] is None:  # a folder beside the wanted one
        resume_step = number = None
        opened.info["id"] = folder.new_run_id()
    info = opened.info
    if process == 0 and resume_step is not None:
        # Before the segments: `derive` keeps what only this file has, and a kill may come between.
        jsonl.trim(opened.dir / "metrics.jsonl", resume_step)
    if damaged := segment_writer.repair(metrics, process, resume_step):
        warn(
            "damaged",
            f"{metrics} has damaged segments ({', '.join(damaged)}): all that can be read is kept, "
            "and the files as they were, as *.damaged",
            "check the disk; copies from a backup or mirror hold the rest",
        )
    last = derive(opened.dir, process, resume_step)
    resumes = bool(info.get("attempts")) or last >= 0
    expected = resume_step is not None  # who says where it goes on means this run
    if resume_step is None:
        resume_step = last if resumes else -1
    if info.get("status") == "finished" and resumes and process == 0 and not expected:
        warn(
            "finished-before",
            f"run {info['id']} was finished; it goes on as another attempt",
            "choose another dir for a new run",
        )
    if process != 0:  # run.json is process 0's: count the own starts
        info = info | {"attempts": folder.own_attempts(metrics, process)}
    info = info | {"status": "running"}
    opened.info, opened.attempt = folder.add_attempt(info, resume_step, number)
    if process == 0:
        folder.write_json(opened.dir / "run.json", opened.info)
    header = asdict(opened.attempt) | {
        "run_id": info["id"],
        "process": process,
        "time_ns": time.time_ns(),
    }
    opened.writer = segment_writer.SegmentWriter(metrics, process, header)
    if process == 0:
        opened.derived = jsonl.JsonlFile(opened.dir / "metrics.jsonl")


def _claim(opened: Opened, process: int, warn: Warn) -> Path:
    """Make and lock the folder; a second process gets a folder and a run id of its own."""
    metrics = opened.dir / "metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    opened.lock = folder.FolderLock(metrics, process)
    if opened.lock.held:
        return metrics
    aside = opened.dir.with_name(f"{opened.dir.name}.second-{os.getpid()}")
    warn(
        "locked",
        f"{opened.dir} is being written by another process: recording a run of its own to {aside}",
        "give each run its own dir, or pass process_index=jax.process_index()",
    )
    opened.lock.release()
    opened.dir = aside
    opened.info = {k: opened.info[k] for k in ("project", "name", "config", "tags", "notes")} | {
        "id": None
    }
    return _claim(opened, process, warn)


def derive(path: Path, process: int, keep_step: int | None) -> int:
    """Derive metrics.jsonl anew from the segments and itself; returns the last step, or -1."""
    metrics, target = path / "metrics", path / "metrics.jsonl"
    if process != 0:
        records = segments.read_all(metrics, process)
        return max((r.step for r in records if r.kind == "values"), default=-1)
    if segments.paths(metrics, 0):
        return jsonl.derive(segments.read_all(metrics, process), target)
    return jsonl.trim(target, keep_step)

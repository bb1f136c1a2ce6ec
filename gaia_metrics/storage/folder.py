"""The run folder on disk: run.json (identity and attempts), status.json, the lock.

RUN/run.json          id, project, name, config, git, versions, attempts; replaced atomically
RUN/status.json       heartbeat: status, last step, warnings; replaced every few seconds
RUN/metrics.jsonl     one line per step, derived
RUN/metrics/p0-*.seg  segments: the truth
RUN/metrics/spool/    OTLP requests that no receiver has acknowledged yet
RUN/mirrors/          copies for W&B and TensorBoard, where they were asked for
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gaia_metrics.errors import FormatError, MetricsError
from gaia_metrics.storage import atomic, segments

MIRRORS = "mirrors"
RUN_ID = re.compile(r"20\d\d(0[1-9]|1[0-2])[A-Za-z0-9._-]{0,120}$")


@dataclass(frozen=True)
class Attempt:
    """One start of the process that trains.

    Attributes:
        attempt: 1 for the first start.
        resume_step: steps above it in earlier attempts are void; -1 at a fresh start.
        started: unix seconds.
        host: host name.
        pid: process id.
    """

    attempt: int
    resume_step: int
    started: float
    host: str
    pid: int


def new_run_id(now: float | None = None) -> str:
    """A run id such as 20261120-5f3a9c2e: the database partitions by its first six characters."""
    return time.strftime("%Y%m%d", time.gmtime(now)) + "-" + os.urandom(4).hex()


def check_run_id(run_id: str) -> str:
    """Return `run_id`; MetricsError where the database could not partition by it."""
    if not RUN_ID.match(run_id):
        raise MetricsError(
            f"run_id={run_id!r} must start with YYYYMM and hold letters, digits, '.', '_' or '-'",
            "leave run_id out, or put the date in front, as in 20261120-" + "d12",
        )
    return run_id


def read_json(path: Path) -> dict:
    """Read one of the JSON files; {} where it is missing. Raises FormatError where it is broken."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error})", "move it away to start anew") from error
    if not isinstance(data, dict) or not isinstance(data.get("id", ""), str):
        raise FormatError(f"{path} holds no record of a run", "move it away to start anew")
    return data


def run_info(run_folder: str | os.PathLike[str]) -> dict:
    """Read a run's run.json: id, project, name, config, git, versions, attempts.

    Returns {} where the folder holds no run. Raises MetricsError where the file is broken.
    """
    return read_json(Path(run_folder) / "run.json")


def write_json(path: Path, data: dict) -> None:
    """Replace one of the JSON files atomically. What JSON cannot hold is written as text."""
    atomic.replace(path, json.dumps(data, indent=1, default=str, allow_nan=False).encode() + b"\n")


def add_attempt(info: dict, resume_step: int, number: int | None) -> tuple[dict, Attempt]:
    """run.json's content with one more attempt (the next one where None), and that attempt."""
    attempts = info.get("attempts", [])
    attempt = Attempt(
        attempt=number or max((a["attempt"] for a in attempts), default=0) + 1,
        resume_step=resume_step,
        started=time.time(),
        host=os.uname().nodename,
        pid=os.getpid(),
    )
    return info | {"attempts": [*attempts, asdict(attempt)]}, attempt


def own_attempts(metrics_folder: Path, process: int) -> list[dict]:
    """The attempts that a process's segments tell of."""
    records = segments.read_all(metrics_folder, process)
    return [record.data for record in records if record.kind == "header"]


class FolderLock:
    """An advisory lock per process index: two writers in one folder would tear each other's files.

    flock is released by the kernel however the process ends, so a stale lock cannot exist.
    """

    def __init__(self, metrics_folder: Path, process: int) -> None:
        self._handle = os.open(metrics_folder / f"p{process}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        self.held = True
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.held = False

    def release(self) -> None:
        """Give the folder back, also where a forked child holds a copy of the handle."""
        if self.held:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        os.close(self._handle)

    def drop_copy(self) -> None:
        """Close a forked child's copy: the lock must end with the parent, however that ends."""
        os.close(self._handle)


@contextlib.contextmanager
def all_locked(metrics_folder: Path) -> Iterator[bool]:
    """Hold the locks of all processes that recorded there; False where one of them still does."""
    processes = {0, *(int(p.name[1:-5]) for p in metrics_folder.glob("p*.lock"))}
    locks: list[FolderLock] = []
    try:
        if metrics_folder.is_dir():
            locks += [FolderLock(metrics_folder, process) for process in sorted(processes)]
        yield all(lock.held for lock in locks)
    finally:
        for lock in locks:
            lock.release()


def delete(path: Path) -> None:
    """Delete the metrics of a run folder, and the folder where nothing else is in it.

    run.json goes first: what an interruption leaves behind is no run any more.
    """
    metrics = path / "metrics"
    with all_locked(metrics) as free:
        if not free:
            raise MetricsError(f"{path} is being recorded", "end the run first")
        for name in ("run.json", "status.json", "metrics.jsonl"):
            (path / name).unlink(missing_ok=True)
        shutil.rmtree(metrics, ignore_errors=True)
        shutil.rmtree(path / MIRRORS, ignore_errors=True)
    with contextlib.suppress(OSError):  # checkpoints and the like stay
        path.rmdir()

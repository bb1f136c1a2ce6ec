"""`init` and `Run`: what a training loop sees.

Nothing here blocks, raises into training or touches a device array: `log` appends to a queue and
the worker thread (worker.py) does the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gaia_metrics import folder, jsonl, segments
from gaia_metrics.errors import MetricsError
from gaia_metrics.worker import HARD_POINTS, SOFT_POINTS, Deferred, Worker

Resume = Literal["allow", "must", "never"]
Status = Literal["finished", "crashed", "stopped"]
HEARTBEAT_S = 10.0
EXIT_TIMEOUT_S = 5.0
_LIVE: weakref.WeakSet[Run] = weakref.WeakSet()


def init(
    project: str,
    name: str,
    config: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    resume: Resume = "allow",
    dir: str | os.PathLike[str] | None = None,
    resume_step: int | None = None,
    process_index: int = 0,
) -> Run:
    """Start recording a run, or take one up again.

    Args:
        project: what the run belongs to, for example "gchat".
        name: what people call the run.
        config: anything JSON can hold; kept in run.json.
        run_id: starts with YYYYMM; made up where None, taken from the folder on a resume.
        resume: "allow" continues what the folder holds, "must" needs it to hold a run, "never"
            needs it to hold none.
        dir: the run folder; runs/NAME by default.
        resume_step: the step that training continues from: whatever the folder holds of later
            steps is cut, as it will be logged again.
        process_index: jax.process_index(); process 0 writes metrics.jsonl.

    Raises:
        MetricsError: `resume` and the folder contradict each other, or run_id is malformed. A
            folder that cannot be written is no error: training goes on with a warning.
    """
    path = Path(dir) if dir is not None else Path("runs") / name
    info = folder.read_json(path / "run.json")
    if resume == "must" and not info:
        raise MetricsError(f"resume='must', but {path} holds no run", "check dir, or allow it")
    if resume == "never" and info:
        raise MetricsError(
            f"resume='never', but {path} holds run {info.get('id')}", "choose another dir"
        )
    if resume not in ("allow", "must", "never"):
        raise MetricsError(f"resume={resume!r}", "use 'allow', 'must' or 'never'")
    if run_id is not None:
        folder.check_run_id(run_id)
        if info and info.get("id") != run_id:
            raise MetricsError(
                f"run_id={run_id!r}, but {path} holds run {info.get('id')}", "choose another dir"
            )
    identity = {
        "id": info.get("id") or run_id or folder.new_run_id(),
        "project": project,
        "name": name,
        "config": dict(config or {}),
    }
    return Run(path, info | identity, resume_step, process_index)


class Run:
    """A run that is being recorded; made by `init`.

    Attributes:
        id: the run id, starting with YYYYMM.
        dir: the run folder.
        attempt: 1 at the first start, one more at each resume.
        resume_step: the step this attempt continues from, -1 at a fresh start.
    """

    def __init__(self, path: Path, info: dict, resume_step: int | None, process: int) -> None:
        self.id: str = info["id"]
        self.dir = path
        self.attempt = 1
        self.resume_step = -1
        self._process = process
        self._info = info
        self._warned: dict[str, str] = {}
        self._lock: folder.FolderLock | None = None
        self._finished = False
        self._closed_whole = False
        self._last_beat = 0.0
        self._status = "running"
        writer, derived = self._open(info, resume_step)
        self._worker = Worker(writer, derived, [], self._warn, self._tick, self._closed)
        self._append = self._worker.queue.append
        self._hook_exit()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values of a step: Python or numpy numbers or jax arrays of one element.

        Takes about a microsecond. Never blocks, never raises and never waits for a device: an
        array is read by the worker thread once it is ready. Several calls for one step are merged.
        """
        try:
            item = dict(values)
            if self._finished:
                self._warn("finished", "log() after finish() was dropped", "log before finish()")
                return
            worker = self._worker
            worker.points_in += len(item)
            if worker.points_in - worker.points_out > SOFT_POINTS:
                self._yield_to_worker(worker, step, item)
            else:
                self._append((step, time.monotonic_ns(), item))
        except Exception as error:
            self._warn("log", f"log() dropped {type(values).__name__} ({error})", "pass a dict")

    def _yield_to_worker(self, worker: Worker, step: int, item: dict) -> None:
        """More than 300,000 points wait (no training logs that fast): bound the memory."""
        worker.wake.set()
        time.sleep(0.0005)
        if worker.points_in - worker.points_out > HARD_POINTS:
            worker.points_in -= len(item)
            worker.dropped += len(item)
            self._warn(
                "flood",
                "values were dropped: the disk does not take them as fast as they are logged",
                "log less often, or put the run folder on a faster disk",
            )
        else:
            self._append((step, time.monotonic_ns(), item))

    def text(self, step: int, name: str, text: str) -> None:
        """Record a text, for example the samples of a step."""
        self._defer(step, None, lambda _: {"kind": "text", "name": str(name), "text": str(text)})

    def wait_durable(self, step: int, timeout: float = 60.0) -> bool:
        """Wait until everything logged so far for steps <= `step` is fsync'ed in the run folder.

        A checkpoint calls it before it commits, so that a resume finds every line. Device arrays
        are waited for. False after `timeout` seconds, or where the folder cannot be written.
        """
        if self._finished:
            return self._closed_whole
        return self._worker.barrier(int(step), timeout)

    def finish(self, status: Status = "finished") -> None:
        """Write everything and close. Later calls do nothing; takes at most five seconds."""
        if self._finished:
            return
        self._finished = True
        self._status = status
        if not self._worker.stop(EXIT_TIMEOUT_S):
            self._warn("slow-finish", "finish() gave up after 5 s with values unwritten", "")
        _LIVE.discard(self)

    def _open(
        self, info: dict, resume_step: int | None
    ) -> tuple[segments.SegmentWriter | None, jsonl.JsonlFile | None]:
        """Repair and cut what is there, note the attempt, open the files."""
        try:
            metrics = self._claim()
            segments.repair(metrics, self._process, resume_step)
            last = self._derive(metrics, resume_step)
            resumes = bool(info.get("attempts")) or last >= 0
            if resume_step is None:
                resume_step = last if resumes else -1
            if info.get("status") == "finished" and resumes:
                self._warn(
                    "finished-before",
                    f"run {self.id} was finished; it goes on as another attempt",
                    "choose another dir for a new run",
                )
            self._info, attempt = folder.add_attempt(info | {"status": "running"}, resume_step)
            self.attempt, self.resume_step = attempt.attempt, resume_step
            if self._process == 0:
                folder.write_json(self.dir / "run.json", self._info)
            header = {
                "run_id": self.id,
                "attempt": self.attempt,
                "resume_step": resume_step,
                "process": self._process,
                "time_ns": time.time_ns(),
            }
            writer = segments.SegmentWriter(metrics, self._process, header)
            derived = jsonl.JsonlFile(self.dir / "metrics.jsonl") if self._process == 0 else None
            return writer, derived
        except OSError as error:
            self._warn(
                "folder",
                f"{self.dir} cannot be written ({error}): metrics are not kept on this disk",
                "make the folder writable or pass another dir",
            )
            return None, None

    def _claim(self) -> Path:
        """Make the folder and lock it; a second process gets a folder of its own beside it."""
        metrics = self.dir / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        self._lock = folder.FolderLock(metrics, self._process)
        if not self._lock.held:
            aside = self.dir.with_name(f"{self.dir.name}.second-{os.getpid()}")
            self._warn(
                "locked",
                f"{self.dir} is being written by another process: recording to {aside}",
                "give each run its own dir, or pass process_index=jax.process_index()",
            )
            self._lock.release()
            self.dir = aside
            return self._claim()
        return metrics

    def _derive(self, metrics: Path, keep_step: int | None) -> int:
        """metrics.jsonl anew from what the segments hold; the last step there is."""
        target = self.dir / "metrics.jsonl"
        records = segments.read_all(metrics, self._process)
        if self._process != 0:
            return max((r.step for r in records if r.kind == "values"), default=-1)
        if segments.paths(metrics, 0):
            return jsonl.derive(records, target)
        return jsonl.trim(target, keep_step)

    def _defer(self, step: int, value: Any, make: Any) -> None:
        if self._finished:
            self._warn("finished", "a record after finish() was dropped", "record before finish()")
        else:
            self._append((step, time.monotonic_ns(), Deferred(value, make)))

    def _warn(self, key: str, problem: str, remedy: str) -> None:
        """Say each kind of trouble once, on stderr and in status.json (for `doctor`)."""
        if key not in self._warned:
            text = f"{problem}; {remedy}" if remedy else problem
            self._warned[key] = text
            print(f"gaia-metrics: {text}", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        """In the worker thread, at least once a second."""
        now = time.monotonic()
        if now - self._last_beat >= HEARTBEAT_S:
            self._last_beat = now
            self._beat()

    def _beat(self) -> None:
        status = {
            "status": self._status,
            "time": time.time(),
            "last_step": self._worker.last_step,
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "dropped": self._worker.dropped,
            "warnings": list(self._warned.values()),
        }
        name = "status.json" if self._process == 0 else f"metrics/p{self._process}.status.json"
        with contextlib.suppress(OSError):  # the segments' own warning says it
            folder.write_json(self.dir / name, status)

    def _closed(self) -> None:
        """In the worker thread, once every file is closed."""
        if self._lock is None:
            return
        if self._process == 0:
            if self._worker.derived_is_stale:
                self._derive(self.dir / "metrics", None)
            ended = {"status": self._status, "ended": time.time()}
            folder.write_json(self.dir / "run.json", self._info | ended)
        self._beat()
        self._lock.release()
        self._closed_whole = not self._worker.dropped

    def _hook_exit(self) -> None:
        _LIVE.add(self)
        _install_hooks()


def _finish_all(status: Status) -> None:
    for run in list(_LIVE):
        run.finish(status)


def _install_hooks() -> None:
    """Once: flush at a normal exit, at an uncaught exception and at SIGTERM."""
    global _HOOKED
    if _HOOKED:
        return
    _HOOKED = True
    previous = sys.excepthook

    def crashed(kind: Any, value: Any, trace: Any) -> None:
        _finish_all("crashed")
        previous(kind, value, trace)

    sys.excepthook = crashed
    atexit.register(_finish_all, "finished")
    os.register_at_fork(after_in_child=_forget_in_child)
    # A trainer with its own handler (for a last checkpoint) calls finish() itself.
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: Any) -> None:
    _finish_all("stopped")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _forget_in_child() -> None:
    """A forked child (a data loader's worker) has no thread: what it logs is dropped."""
    for run in list(_LIVE):
        run._finished = True
        _LIVE.discard(run)


_HOOKED = False

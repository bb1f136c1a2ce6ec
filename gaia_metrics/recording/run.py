"""`init` and `Run`: the calls of a training loop.

Nothing here blocks, raises into training or touches a device array: `log` appends to a queue and
the worker thread (worker.py) does the rest.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from gaia_metrics.config import redact
from gaia_metrics.grafana import dashboard_url
from gaia_metrics.recording import exit_hooks, outlets
from gaia_metrics.recording.histogram import summarize
from gaia_metrics.recording.mirror import check_sinks
from gaia_metrics.recording.opening import check_process, check_resume, derive, open_folder
from gaia_metrics.recording.sdk import SdkMetrics
from gaia_metrics.recording.vitals import Vitals
from gaia_metrics.recording.watch import Watch, WatchConfig
from gaia_metrics.recording.worker import HARD_POINTS, SOFT_POINTS, Deferred, Sink, Worker
from gaia_metrics.redaction import redact_text
from gaia_metrics.sending import arrivals
from gaia_metrics.storage import folder

Resume = Literal["allow", "must", "never"]
Status = Literal["finished", "crashed", "stopped"]
EXIT_TIMEOUT_S = 5.0
MIRROR_TIMEOUT_S = 20.0  # W&B's process closes its file
FACTS_WAIT_S = 2.0  # at the end, for git


def init(
    project: str,
    name: str,
    config: Any = None,
    run_id: str | None = None,
    resume: Resume = "allow",
    dir: str | os.PathLike[str] | None = None,
    resume_step: int | None = None,
    process_index: int = 0,
    system_interval: float = 10.0,
    watch: WatchConfig | None = None,
    tags: Sequence[str] = (),
    notes: str = "",
    sinks: Sequence[str] = (),
    attempt: int | None = None,
) -> Run:
    """Start recording a run, or resume one.

    Where OTEL_EXPORTER_OTLP_ENDPOINT is set the run is also sent there; see transport.py.

    Args:
        project: what the run belongs to, for example "gchat".
        name: what people call the run.
        config: a table, dataclass or argparse.Namespace; kept in run.json, without secrets.
        run_id: starts with YYYYMM; made up where None, taken from the folder on a resume.
        resume: "allow" continues what the folder holds, "must" needs a run there, "never" none.
        dir: the run folder; runs/NAME by default.
        resume_step: the step that training continues from: whatever the folder holds of later
            steps is cut, as it will be logged again.
        process_index: jax.process_index(); process 0 writes metrics.jsonl. The others need the
            run_id of process 0, unless the folder holds the run already.
        system_interval: seconds between system samples; 0 takes none.
        watch: limits of the alerts.
        tags: words to find the run by.
        notes: a remark for readers of the run.
        sinks: "wandb" (an offline run) and "tensorboard" (an event file) get a copy of process 0's
            records in RUN/mirrors; see mirror.py.
        attempt: run.attempt of process 0, for the others: their own count may be another.

    Raises:
        MetricsError: `resume` and the folder contradict each other, run_id is malformed or
            missing, or a sink is unknown or not installed. A folder that cannot be written is no
            error: training goes on with a warning.
    """
    chosen = check_sinks(sinks) if sinks else ()
    path = Path(dir) if dir is not None else Path("runs") / name
    _close_own(path, process_index)
    known = folder.read_json(path / "run.json")
    check_resume(path, known, resume, run_id)
    check_process(path, known, process_index, run_id, attempt)
    info = known | {
        "id": known.get("id") or run_id or folder.new_run_id(),
        "project": project,
        "name": name,
        "tags": [redact_text(str(tag)) for tag in tags] or known.get("tags", []),
        "notes": redact_text(str(notes)) or known.get("notes", ""),
        "config": redact({} if config is None else config),
    }
    limits = watch or WatchConfig()
    return Run(path, info, resume_step, process_index, attempt, system_interval, limits, chosen)


def _close_own(path: Path, process: int) -> None:
    """Finish a run that this process records there: a notebook's cell that is run again."""
    for run in exit_hooks.live():
        if run.records_to(path, process):
            run.finish("stopped")


class Run:
    """A run being recorded; `init` makes it.

    Attributes:
        id: the run id, starting with YYYYMM.
        dir: the run folder.
        attempt: 1 at the first start, one more at each resume.
        resume_step: the step this attempt continues from, -1 at a fresh start.
    """

    def __init__(
        self,
        path: Path,
        info: dict,
        resume_step: int | None,
        process: int,
        number: int | None,
        system_interval: float,
        watch: WatchConfig,
        mirrors: Sequence[str] = (),
    ) -> None:
        self._process = process
        self._warned: dict[str, str] = {}
        self._finished = self._closed_whole = False
        self._dropped_because = ("after finish()", "log before finish()")
        settings = outlets.export_settings(self._warn)
        opened = open_folder(path, info, process, resume_step, number, self._warn)
        self.id: str = opened.info["id"]
        self.dir = opened.dir
        self.attempt, self.resume_step = opened.attempt.attempt, opened.attempt.resume_step
        self._info, self._lock, self._segments = opened.info, opened.lock, opened.writer
        writable = self.dir if opened.writer is not None else None
        attempt = asdict(opened.attempt)
        self._exporter = outlets.exporter(settings, opened, attempt, process, self._warn)
        sinks: list[Sink] = [Watch(self._alert_from_watch, watch)]
        if self._exporter is not None:
            sinks.append(self._exporter)
        self._mirrors = outlets.mirrors(mirrors, opened, process, self._warn)
        sinks += self._mirrors
        self._notices = None
        if process == 0:
            self._notices = outlets.notices(opened, attempt["host"], self._warn)
        if self._notices is not None:
            sinks.append(self._notices)
        self._facts: list[dict] = []
        self._facts_thread = threading.Thread(
            target=self._collect_facts, name="gaia-metrics-facts", daemon=True
        )
        self._sdk = SdkMetrics({"service.name": "gaia", "gaia.run.id": self.id})
        self._vitals = Vitals(
            writable,
            self._info,
            attempt,
            process,
            self._exporter,
            system_interval,
            self._warned,
            self._sdk,
        )
        self._worker = Worker(
            opened.writer,
            opened.derived,
            sinks,
            self._warn,
            self._tick,
            self._closed,
            self._look_around,
        )
        self._append = self._worker.queue.append
        exit_hooks.watch(self)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values of a step: Python or numpy numbers or jax arrays of one element.

        Takes about a microsecond. Never blocks, never raises and never waits for a device: an
        array is read by the worker thread once it is ready. Several calls for one step are merged.
        """
        try:
            item = dict(values)
            if self._finished:
                where, remedy = self._dropped_because
                self._warn("finished", f"log() {where} was dropped", remedy)
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
        """Bound the memory once more than 200,000 points wait, which no training loop reaches."""
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

    def histogram(self, step: int, name: str, values: Any) -> None:
        """Record the distribution of an array's values (weights, gradients), read when ready."""
        self._defer(step, values, lambda v: {"kind": "histogram", "name": str(name)} | summarize(v))

    def text(self, step: int, name: str, text: str) -> None:
        """Record a text, for example the samples of a step."""
        self._defer(
            step,
            None,
            lambda _: {"kind": "text", "name": str(name), "text": redact_text(str(text))},
        )

    def alert(self, title: str, text: str = "", level: Literal["info", "warn", "error"] = "warn"):
        """Raise an alert: it is printed to stderr, kept in the run folder and sent."""
        record = _alert(title, text, level)
        self._defer(None, None, lambda _: record)

    @property
    def meter_provider(self) -> Any:
        """A stock OpenTelemetry MeterProvider whose instruments record into this run.

        Give it to instrumented code, or call `get_meter(...)` on it. Each instrument is read when
        the system is sampled and at the end, and kept as a system value (a histogram as a
        histogram); attributes become part of the name: `requests{route=/a}`.

        Raises:
            MetricsError: the `metrics` extra is not installed.
        """
        return self._sdk.meter_provider

    @property
    def url(self) -> str:
        """Link to the run's Grafana dashboard; "" where GAIA_GRAFANA_URL is not set."""
        return dashboard_url(self.id)

    def wait_durable(self, step: int, timeout: float = 60.0) -> bool:
        """Wait until everything logged so far for steps <= `step` is fsync'ed in the run folder.

        A checkpoint calls it before it commits, so that a resume finds every line. Device arrays
        are waited for. False after `timeout` seconds, or where the folder cannot be written.
        """
        if self._finished:
            return self._closed_whole
        return self._worker.barrier(int(step), timeout)

    def finish(self, status: Status = "finished") -> None:
        """Write everything, send what the receiver takes, and close.

        Takes at most ten seconds, and no longer than two where the receiver is down: what is left
        stays on disk. Sinks may take twenty more. Later calls do nothing. SIGTERM waits for it.
        """
        if not self._finished:
            with exit_hooks.finishing(self):
                self._finish(status)

    def _finish(self, status: Status) -> None:
        self._finished = True
        self._vitals.status = status
        if not self._worker.stop(EXIT_TIMEOUT_S):
            self._warn("slow-finish", "finish() gave up after 5 s with values unwritten", "")
        for mirror in self._mirrors:
            mirror.end(status)
        exporter = self._exporter
        if exporter is not None:
            patience = 1.0 if exporter.sender.failing else EXIT_TIMEOUT_S
            if not exporter.close(patience):
                self._warn(
                    "unsent",
                    f"run {self.id} has metrics that are not sent yet",
                    f"run `gaia-metrics sync {self.dir}`",
                )
            elif self._closed_whole and self._segments is not None and exporter.nothing_missing:
                arrivals.note(self.dir / "metrics", self._segments.paths, self._process)
        if self._notices is not None:
            self._notices.ended(status, self._worker.last_step)
            self._notices.close(EXIT_TIMEOUT_S)
        for mirror in self._mirrors:
            mirror.close(MIRROR_TIMEOUT_S)
        if self._closed_whole:
            self._vitals.beat(self._worker)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def records_to(self, path: Path, process: int) -> bool:
        """Return True where this run records to the folder as that process."""
        return self._process == process and self.dir.resolve() == path.resolve()

    def abandon(self) -> None:
        """Leave the run to the parent: a forked child (a data loader's worker) has no thread."""
        self._finished = True
        self._dropped_because = ("in a forked child", "record in the parent, or init a run there")
        if self._lock is not None:
            self._lock.drop_copy()
            self._lock = None

    def _defer(self, step: int | None, value: Any, make: Callable[[Any], dict]) -> None:
        if self._finished:
            where, remedy = self._dropped_because
            self._warn("finished", f"a record {where} was dropped", remedy)
        else:
            self._append((step, time.monotonic_ns(), Deferred(value, make)))

    def _alert_from_watch(self, level: str, title: str, text: str) -> None:
        """Keep an alert of the watch at once: it speaks in the worker's thread, to the end."""
        self._worker.keep(_alert(title, text, level))

    def _warn(self, key: str, problem: str, remedy: str) -> None:
        """Say each kind of trouble once, on stderr and in status.json (for `doctor`)."""
        if key not in self._warned:
            text = redact_text(f"{problem}; {remedy}" if remedy else problem)
            self._warned[key] = text
            print(f"gaia-metrics: {text}", file=sys.stderr, flush=True)

    def _look_around(self) -> None:
        """Collect the facts that take subprocesses, in a thread of their own.

        A data loader that forks while git is being started keeps a copy of its pipe, and whoever
        waits for git then waits for that loader: this must not be the thread that writes values.
        """
        self._facts_thread.start()

    def _collect_facts(self) -> None:
        from gaia_metrics.recording import capture

        more = {"git": capture.git_state(), "versions": capture.versions()}
        self._facts.append(more | {"program": capture.program()})

    def _tick(self, worker: Worker, final: bool) -> None:
        """Do the periodic duties, in the worker's thread; facts are taken once they are known."""
        if final and self._facts_thread.is_alive():
            self._facts_thread.join(FACTS_WAIT_S)
        while self._facts:
            self._vitals.facts_known(self._facts.pop())
        self._vitals.tick(worker, final)

    def _closed(self) -> None:
        """Note the end in run.json, in the worker thread, once every file is closed."""
        if self._process == 0 and self._lock is not None:
            if self._worker.derived_is_stale:
                with contextlib.suppress(OSError):  # a full disk: the next start derives it
                    derive(self.dir, self._process, None)
            self._vitals.facts_known({"status": self._vitals.status, "ended": time.time()})
        self._closed_whole = not self._worker.dropped


def _alert(title: str, text: str, level: str) -> dict:
    """Print an alert and make its record."""
    title, text = redact_text(str(title)), redact_text(str(text))
    print(f"gaia-metrics: {level}: {title}: {text}", file=sys.stderr, flush=True)
    return {"kind": "alert", "name": str(title), "text": str(text), "level": level}

"""`init` and `Run`: what a training loop sees.

Nothing here blocks, raises into training or touches a device array: `log` appends to a queue and
the worker thread (worker.py) does the rest.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gaia_metrics import exit_hooks, facts, folder, jsonl, segments
from gaia_metrics.errors import MetricsError
from gaia_metrics.histogram import summarize
from gaia_metrics.vitals import Vitals
from gaia_metrics.watch import Watch, WatchConfig
from gaia_metrics.worker import HARD_POINTS, SOFT_POINTS, Deferred, Sink, Worker

# http.client, ssl, subprocess and importlib.metadata take 0.3 s to import on a slow core: they are
# imported where an endpoint is set, or in the worker thread.
if TYPE_CHECKING:
    from gaia_metrics.export import Exporter
    from gaia_metrics.transport import ExportSettings

Resume = Literal["allow", "must", "never"]
Status = Literal["finished", "crashed", "stopped"]
EXIT_TIMEOUT_S = 5.0


def init(
    project: str,
    name: str,
    config: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    resume: Resume = "allow",
    dir: str | os.PathLike[str] | None = None,
    resume_step: int | None = None,
    process_index: int = 0,
    system_interval: float = 10.0,
    watch: WatchConfig | None = None,
) -> Run:
    """Start recording a run, or take one up again.

    Where OTEL_EXPORTER_OTLP_ENDPOINT is set the run is also sent there; see transport.py.

    Args:
        project: what the run belongs to, for example "gchat".
        name: what people call the run.
        config: anything JSON can hold; kept in run.json, without secrets.
        run_id: starts with YYYYMM; made up where None, taken from the folder on a resume.
        resume: "allow" continues what the folder holds, "must" needs it to hold a run, "never"
            needs it to hold none.
        dir: the run folder; runs/NAME by default.
        resume_step: the step that training continues from: whatever the folder holds of later
            steps is cut, as it will be logged again.
        process_index: jax.process_index(); process 0 writes metrics.jsonl.
        system_interval: seconds between system samples; 0 takes none.
        watch: limits of the alerts.

    Raises:
        MetricsError: `resume` and the folder contradict each other, or run_id is malformed. A
            folder that cannot be written is no error: training goes on with a warning.
    """
    path = Path(dir) if dir is not None else Path("runs") / name
    known = folder.read_json(path / "run.json")
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
    identity = {
        "id": known.get("id") or run_id or folder.new_run_id(),
        "project": project,
        "name": name,
        "config": facts.redact(config or {}),
    }
    limits = watch or WatchConfig()
    return Run(path, known | identity, resume_step, process_index, system_interval, limits)


class Run:
    """A run that is being recorded; made by `init`.

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
        system_interval: float,
        watch: WatchConfig,
    ) -> None:
        self.id: str = info["id"]
        self.dir = path
        self._process = process
        self._warned: dict[str, str] = {}
        self._lock: folder.FolderLock | None = None
        self._finished = False
        self._closed_whole = False
        settings = self._settings()
        writer, derived, info, attempt = self._open(info, resume_step, settings is not None)
        self.attempt, self.resume_step = attempt.attempt, attempt.resume_step
        self._info = info
        writable = self.dir if writer is not None else None
        self._exporter = self._export(settings, attempt)
        sinks: list[Sink] = [Watch(self._alert_from_watch, watch)]
        if self._exporter is not None:
            sinks.append(self._exporter)
        self._vitals = Vitals(
            writable, info, asdict(attempt), process, self._exporter, system_interval, self._warned
        )
        self._worker = Worker(
            writer, derived, sinks, self._warn, self._vitals.tick, self._closed, self._look_around
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
        """More than 200,000 points wait (no training logs that fast): bound the memory."""
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
        self._defer(step, None, lambda _: {"kind": "text", "name": str(name), "text": str(text)})

    def alert(self, title: str, text: str = "", level: Literal["info", "warn", "error"] = "warn"):
        """Tell people: printed to stderr, kept in the run folder, sent to the receiver."""
        print(f"gaia-metrics: {level}: {title}: {text}", file=sys.stderr, flush=True)
        step = max(0, self._worker.last_step)
        record = {"kind": "alert", "name": str(title), "text": str(text), "level": level}
        self._defer(step, None, lambda _: record)

    @property
    def meter_provider(self) -> Any:
        """A stock OpenTelemetry MeterProvider whose metrics travel with the run's.

        None without an endpoint, without the `metrics` extra, or in the run's first second.
        """
        return self._vitals.sdk.meter_provider if self._vitals.sdk is not None else None

    @property
    def url(self) -> str:
        """The run's Grafana dashboard, where GAIA_GRAFANA_URL says where Grafana is; else ""."""
        return folder.dashboard_url(self.id)

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
        stays on disk. Later calls do nothing.
        """
        if self._finished:
            return
        self._finished = True
        self._vitals.status = status
        if not self._worker.stop(EXIT_TIMEOUT_S):
            self._warn("slow-finish", "finish() gave up after 5 s with values unwritten", "")
        exporter = self._exporter
        if exporter is not None:
            patience = 1.0 if exporter.sender.failing else EXIT_TIMEOUT_S
            if not exporter.close(patience):
                self._warn(
                    "unsent",
                    f"run {self.id} has metrics that are not sent yet",
                    f"run `gaia-metrics sync {self.dir}`",
                )
        if self._closed_whole:
            self._vitals.beat(self._worker)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        exit_hooks.forget(self)

    def abandon(self) -> None:
        """A forked child (a data loader's worker) has no thread: what it logs is dropped."""
        self._finished = True

    def _open(
        self, info: dict, resume_step: int | None, exported: bool
    ) -> tuple[segments.SegmentWriter | None, jsonl.JsonlFile | None, dict, folder.Attempt]:
        """Repair and cut what is there, note the attempt, open the files."""
        asked = self.dir
        try:
            metrics = self._claim()
            if self.dir.resolve() != asked.resolve():  # another process has the folder and the id
                self.id = folder.new_run_id()
                info = {k: info[k] for k in ("project", "name", "config")} | {"id": self.id}
                resume_step = None
            segments.repair(metrics, self._process, resume_step)
            last = self._derive(metrics, resume_step)
            resumes = bool(info.get("attempts")) or last >= 0
            if resume_step is None:
                resume_step = last if resumes else -1
            if info.get("status") == "finished" and resumes and self._process == 0:
                self._warn(
                    "finished-before",
                    f"run {self.id} was finished; it goes on as another attempt",
                    "choose another dir for a new run",
                )
            if self._process != 0:  # run.json is process 0's: count the own starts
                info = info | {"attempts": folder.own_attempts(metrics, self._process)}
            info, attempt = folder.add_attempt(info | {"status": "running"}, resume_step)
            if self._process == 0:
                folder.write_json(self.dir / "run.json", info)
            header = asdict(attempt) | {
                "run_id": self.id,
                "process": self._process,
                "exported": exported,
                "time_ns": time.time_ns(),
            }
            writer = segments.SegmentWriter(metrics, self._process, header)
            derived = jsonl.JsonlFile(self.dir / "metrics.jsonl") if self._process == 0 else None
            return writer, derived, info, attempt
        except OSError as error:
            self._warn(
                "folder",
                f"{self.dir} cannot be written ({error}): metrics are not kept on this disk",
                "make the folder writable or pass another dir",
            )
            resume_step = -1 if resume_step is None else resume_step
            return None, None, *folder.add_attempt(info, resume_step)

    def _claim(self) -> Path:
        """Make the folder and lock it; a second process gets a folder of its own beside it."""
        metrics = self.dir / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        self._lock = folder.FolderLock(metrics, self._process)
        if not self._lock.held:
            aside = self.dir.with_name(f"{self.dir.name}.second-{os.getpid()}")
            self._warn(
                "locked",
                f"{self.dir} is being written by another process: recording a run of its own to "
                f"{aside}",
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

    def _settings(self) -> ExportSettings | None:
        if not any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ):
            return None
        from gaia_metrics.transport import ExportSettings

        try:
            return ExportSettings.from_env(os.environ)
        except MetricsError as error:
            self._warn("settings", f"{error.problem}: recording locally only", error.remedy)
            return None

    def _export(self, settings: ExportSettings | None, attempt: folder.Attempt) -> Exporter | None:
        if settings is None:
            return None
        from gaia_metrics.export import Exporter

        try:
            resource = facts.resource(self._info, asdict(attempt), self._process)
            spool = self.dir / "metrics" / "spool"
            return Exporter(spool, self._process, resource, settings, self._warn)
        except OSError as error:
            self._warn(
                "spool-disk",
                f"the spool cannot be written ({error}): nothing is sent",
                "make the run folder writable, then `gaia-metrics sync`",
            )
            return None

    def _defer(self, step: int, value: Any, make: Callable[[Any], dict]) -> None:
        if self._finished:
            self._warn("finished", "a record after finish() was dropped", "record before finish()")
        else:
            self._append((step, time.monotonic_ns(), Deferred(value, make)))

    def _alert_from_watch(self, level: Any, title: str, text: str) -> None:
        self.alert(title, text, level)

    def _warn(self, key: str, problem: str, remedy: str) -> None:
        """Say each kind of trouble once, on stderr and in status.json (for `doctor`)."""
        if key not in self._warned:
            text = f"{problem}; {remedy}" if remedy else problem
            self._warned[key] = text
            print(f"gaia-metrics: {text}", file=sys.stderr, flush=True)

    def _look_around(self) -> None:
        """In the worker thread, once it has written: what takes subprocesses to find out."""
        from gaia_metrics import capture

        found = {"git": capture.git_state(), "versions": capture.versions()}
        self._vitals.facts_known(found | {"program": capture.program()})

    def _closed(self) -> None:
        """In the worker thread, once every file is closed."""
        if self._process == 0 and self._lock is not None:
            if self._worker.derived_is_stale:
                with contextlib.suppress(OSError):  # a full disk: the next start derives it
                    self._derive(self.dir / "metrics", None)
            self._vitals.facts_known({"status": self._vitals.status, "ended": time.time()})
        self._closed_whole = not self._worker.dropped

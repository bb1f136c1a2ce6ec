"""Work of the worker thread beside records: heartbeat, system samples, facts for the receiver."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaia_metrics.names import BPB, LOSS
from gaia_metrics.recording.sdk import SdkMetrics
from gaia_metrics.recording.system import Sampler
from gaia_metrics.recording.worker import Worker
from gaia_metrics.sending import facts
from gaia_metrics.storage import folder
from gaia_metrics.storage.jsonl import named

if TYPE_CHECKING:
    from gaia_metrics.sending.exporter import Exporter

HEARTBEAT_S = 10.0
INFO_S = 30.0
SDK_S = 10.0  # between readings of OpenTelemetry instruments where no system is sampled


class Vitals:
    """Periodic duties of a run; the worker's thread owns all its state and calls it each second.

    Args:
        path: the run folder, or None where it cannot be written.
        info: run.json's content.
        attempt: this attempt, as in run.json.
        process: process index.
        exporter: None without an endpoint.
        system_interval: seconds between system samples; 0 takes none.
        warnings: what the user was told so far.
        sdk: the run's OpenTelemetry instruments.
    """

    def __init__(
        self,
        path: Path | None,
        info: dict,
        attempt: dict,
        process: int,
        exporter: Exporter | None,
        system_interval: float,
        warnings: dict[str, str],
        sdk: SdkMetrics,
    ) -> None:
        self.status = "running"
        self._path, self._info, self._attempt, self._process = path, info, attempt, process
        self._exporter, self._interval, self._warnings = exporter, system_interval, warnings
        self._sdk = sdk
        self._sampler: Sampler | None = None
        self._due: dict[str, float] = {"beat": 0.0, "info": 0.0, "system": 0.0}

    def tick(self, worker: Worker, final: bool = False) -> None:
        """Do what is due; everything once more at the end."""
        if self._is_due("beat", HEARTBEAT_S, final):
            self.beat(worker)
        if self._exporter is not None and self._is_due("info", INFO_S, final):
            self._send_info(worker)
        if self._is_due("system", self._interval or SDK_S, final):
            self._sample(worker, final)

    def _is_due(self, what: str, every: float, final: bool) -> bool:
        now = time.monotonic()
        if final or now >= self._due[what]:
            self._due[what] = now + every
            return True
        return False

    def beat(self, worker: Worker) -> None:
        """Replace status.json."""
        if self._path is None:
            return
        exporter = self._exporter
        status = {
            "status": self.status,
            "time": time.time(),
            "last_step": worker.last_step,
            "latest": {
                name: value if math.isfinite(value) else named(value)
                for name in (LOSS, BPB)
                if (value := worker.latest.get(name)) is not None
            },
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "dropped": worker.dropped,
            "warnings": list(self._warnings.values()),
        }
        if exporter is not None:
            status["unsent_bytes"] = exporter.spool.pending_bytes
            status["sending"] = exporter.sender.failing or "ok"
            status["refused"] = len(exporter.spool.refused())
        elif "settings" in self._warnings:
            status["sending"] = f"off: {self._warnings['settings']}"
        name = "status.json" if self._process == 0 else f"metrics/p{self._process}.status.json"
        with contextlib.suppress(OSError):  # the segments' own warning says it
            folder.write_json(self._path / name, status)

    def _send_info(self, worker: Worker) -> None:
        assert self._exporter is not None
        if self._process != 0:
            return
        values = facts.info(self._info, self._attempt, self.status, worker.last_step)
        start_ns = int(self._attempt["started"] * 1e9)
        self._exporter.builder.info(time.time_ns(), start_ns, values)
        if worker.dropped:
            dropped = {"gaia.dropped_points": float(worker.dropped)}
            self._exporter.builder.values(-1, time.time_ns(), dropped, True)

    def _sample(self, worker: Worker, final: bool) -> None:
        values, histograms = self._sdk.read()
        if self._interval > 0:
            if self._sampler is not None:
                values |= self._sampler.sample()
            elif not final:  # no imports in the last moment
                self._sampler = Sampler(lambda: worker.devices)
                # Utilizations are since the call before: give the first one a second.
                self._due["system"] = time.monotonic() + min(1.0, self._interval)
        if values:
            worker.system(values)
        for record in histograms:
            worker.keep(record)

    def facts_known(self, more: dict[str, Any]) -> None:
        """Add facts that became known later (git state) to run.json and the info metric."""
        self._info |= more
        if self._path is not None and self._process == 0:
            with contextlib.suppress(OSError):  # the segments' own warning says it
                folder.write_json(self._path / "run.json", self._info)

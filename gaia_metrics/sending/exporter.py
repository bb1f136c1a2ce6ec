"""From records to a receiver: builds OTLP requests, spools them, sends them from a thread.

Delivery is at least once. The database keeps one value per (run, metric, process, step), the one
of the latest attempt, so it ends up holding each exactly once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from gaia_metrics.sending import wire
from gaia_metrics.sending.builder import Builder
from gaia_metrics.sending.sender import Sender
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.spool import Spool


class Exporter:
    """The worker's sink for a receiver: Builder -> Spool -> Sender."""

    def __init__(
        self,
        folder: Path,
        process: int,
        resource: Mapping[str, wire.Scalar],
        settings: ExportSettings,
        warn: Callable[[str, str, str], None],
    ) -> None:
        limit = _spool_mb(warn) << 20
        self.spool = Spool(folder, process, limit)
        self.builder = Builder(resource, self._emit)
        self.sender = Sender(self.spool, settings, warn)
        self.lost_requests = 0
        self._signals = set(settings.endpoints)
        if b"l" not in self._signals:
            warn(
                "no-logs",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set alone: texts and alerts are not sent",
                "set OTEL_EXPORTER_OTLP_ENDPOINT, then `gaia-metrics sync RUN --all`",
            )
        self._warn = warn

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Take one `log()`."""
        self.builder.values(step, time_ns, values, system)

    def record(self, record: dict) -> None:
        """Take a text, histogram or alert."""
        self.builder.record(record)

    def flush(self, fsync: bool) -> None:
        """Spool what was collected and wake the sender."""
        self.builder.flush()
        self.sender.wake.set()
        if self.spool.dropped_files:
            self._warn(
                "spool-full",
                "the spool is full: its oldest requests were dropped",
                "raise GAIA_METRICS_SPOOL_MB; `gaia-metrics sync RUN --all` sends them again",
            )

        if self.spool.damaged:
            self._warn(
                "spool-damaged",
                "the spool has damaged places: what stood there is not sent",
                "check the disk; `gaia-metrics sync RUN --all` sends it from the segments",
            )

    def _emit(self, signal: bytes, request: bytes) -> None:
        if signal not in self._signals:
            return
        try:
            self.spool.append(signal, request)
        except OSError as error:
            self.lost_requests += 1
            self._warn(
                "spool-disk",
                f"the spool cannot be written: {error}",
                "free space; `gaia-metrics sync RUN --all` sends what was missed",
            )

    @property
    def nothing_missing(self) -> bool:
        """True where no request was left out, dropped, damaged or refused, in part or whole."""
        spool = self.spool
        lost = self.lost_requests or self.sender.left_out or spool.dropped_files or spool.damaged
        return b"l" in self._signals and not lost and not spool.refused()

    def close(self, timeout: float) -> bool:
        """Send what is left; True where all of it arrived."""
        self.builder.flush()
        arrived = self.sender.stop(timeout)
        self.spool.close()
        return arrived and not self.lost_requests


def _spool_mb(warn: Callable[[str, str, str], None]) -> int:
    text = os.environ.get("GAIA_METRICS_SPOOL_MB", "8192")
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    warn("spool-limit", f"GAIA_METRICS_SPOOL_MB={text!r} is no number of MB: 8192 is used", "")
    return 8192

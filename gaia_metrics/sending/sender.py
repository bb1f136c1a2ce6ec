"""The thread that empties a spool into a receiver."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from gaia_metrics.errors import MetricsError
from gaia_metrics.sending.outcome import Outcome, Transport
from gaia_metrics.sending.settings import ExportSettings
from gaia_metrics.sending.spool import Spool, read_refused
from gaia_metrics.sending.transport import connect

BACKOFF_S = (1.0, 60.0)
RETRY_REFUSED_S = 600.0


class Sender:
    """The thread that empties a spool into a receiver.

    Args:
        spool: where requests come from.
        settings: where they go.
        warn: called as warn(key, problem, remedy).
    """

    def __init__(
        self, spool: Spool, settings: ExportSettings, warn: Callable[[str, str, str], None]
    ) -> None:
        self._spool, self._settings, self._warn = spool, settings, warn
        self.wake = threading.Event()
        self.sent_requests = self.sent_bytes = 0
        self.left_out = 0  # points that the receiver did not take of batches that it accepted
        self.failing = ""  # what went wrong last, "" while all is well
        self._refused_due = 0.0
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="gaia-metrics-send", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Send what is left for at most `timeout` seconds; True where all of it arrived."""
        self._stop_at = time.monotonic() + timeout
        self.wake.set()
        self._thread.join(timeout + 1.0)
        return self._spool.pending_bytes == 0

    def _run(self) -> None:
        while not self._over():
            try:
                self._loop(connect(self._settings))
                return
            except MetricsError as error:
                self.failing = error.problem
                self._warn("export-setup", error.problem, error.remedy)
                return
            except Exception as error:  # the thread must outlive every surprise
                self.failing = f"{type(error).__name__}: {error}"
                self._warn(
                    "send-error", f"sending failed: {self.failing}"[:300], "please report it"
                )
                self._sleep(BACKOFF_S[1])

    def _loop(self, transport: Transport) -> None:
        delay = BACKOFF_S[0]
        while True:
            wait = self._send_all(transport, delay)
            if not wait:
                self._retry_refused(transport)
            if self._over():
                transport.close()
                return
            if wait:  # failing: wait, longer each time, whatever is appended meanwhile
                self._sleep(wait)
                delay = min(delay * 2, BACKOFF_S[1])
            else:
                delay = BACKOFF_S[0]
                self.wake.wait(1.0)
            self.wake.clear()

    def _retry_refused(self, transport: Transport) -> None:
        """Try what was refused again, at the start and every ten minutes: it may be mended."""
        if time.monotonic() < self._refused_due:
            return
        self._refused_due = time.monotonic() + RETRY_REFUSED_S
        for path in self._spool.refused():
            if self._stop_at is not None:
                return
            outcome = transport.send(*read_refused(path))
            if outcome.kind == "ok":
                self._note_left_out(outcome)
                path.unlink(missing_ok=True)
            elif outcome.kind != "rejected":
                return  # the receiver takes nothing now

    def _over(self) -> bool:
        stop_at = self._stop_at
        return stop_at is not None and (
            time.monotonic() >= stop_at or self._spool.pending_bytes == 0
        )

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._over():
            if self._stop_at is not None:
                left = min(left, 0.2)
            time.sleep(min(left, 0.5))

    def _send_all(self, transport: Transport, delay: float) -> float:
        """Send until the spool is empty (0) or something fails (seconds to wait)."""
        while not (self._stop_at is not None and time.monotonic() >= self._stop_at):
            try:
                frame = self._spool.peek()
            except OSError as error:
                self._warn("spool", f"the spool cannot be read: {error}", "check the disk")
                return delay
            if frame is None:
                return 0.0
            outcome = transport.send(*frame)
            if outcome.kind == "ok":
                self._note_left_out(outcome)
                self._spool.acknowledge()
                self.sent_requests += 1
                self.sent_bytes += len(frame[1])
                self.failing = ""
            elif outcome.kind == "rejected":
                where = self._spool.set_aside()
                # An earlier attempt may have spooled what this one has no endpoint for.
                receiver = self._settings.endpoints.get(frame[0], "the receiver")
                self._warn(
                    "rejected",
                    f"{receiver} refuses a batch ({outcome.detail})",
                    f"it is kept as {where.name} and tried again later; see `gaia-metrics doctor`",
                )
                self._refused_due = time.monotonic() + RETRY_REFUSED_S
            else:
                self._report(outcome.kind, outcome.detail, frame[0])
                return max(outcome.retry_after, delay * random.uniform(0.8, 1.2))
        return 0.0

    def _note_left_out(self, outcome: Outcome) -> None:
        """Count what an accepted batch lacks, so that the run does not count as arrived."""
        if outcome.left_out:
            self.left_out += outcome.left_out
            remedy = "see its log; once it is mended, `gaia-metrics sync RUN` sends them again"
            self._warn("partial", outcome.detail, remedy)

    def _report(self, kind: str, detail: str, signal: bytes) -> None:
        self.failing = detail
        where = self._settings.endpoints[signal]
        remedy = "metrics are kept on disk and sent when it answers, or by `gaia-metrics sync`"
        if kind == "denied":
            remedy = denied_remedy(detail)
        self._warn(f"send-{kind}", f"{where} did not take metrics ({detail})", remedy)


def denied_remedy(detail: str) -> str:
    """Return the remedy for an answer of kind "denied"."""
    if "certificate" in detail:
        return "set OTEL_EXPORTER_OTLP_CERTIFICATE to the authority's PEM file"
    if "not from an OTLP receiver" in detail:
        return "check address, port, path and http or https in OTEL_EXPORTER_OTLP_ENDPOINT"
    return "check the token in OTEL_EXPORTER_OTLP_HEADERS"

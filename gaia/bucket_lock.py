"""One writer at a time under a gs:// prefix: an object that names its process and is kept alive.

The object is only ever written on the condition that its generation is the one seen last, so that
of two processes that try at once one succeeds. Its holder writes it anew every BEAT_S seconds;
one that finds another generation there has been taken for dead, and must not write any more.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from gaia import storage
from gaia.storage import gcs
from gaia.writer_lock import BEAT_S, SILENT_S, FolderInUse, when_to_retry

NAME = ".gaia.lock"
_BEAT_PATIENCE_S = 20.0


class BucketLock:
    """Held while one process writes below a prefix; a context manager.

    Args:
        prefix: gs:// address.
        what: is written, for the messages: "the run in gs://bucket/run".
        every_s: seconds between signs of life.

    Raises:
        FolderInUse: on entering, where another process holds it.
        StorageError: the bucket cannot be written.
    """

    def __init__(self, prefix: str, what: str, *, every_s: float = BEAT_S) -> None:
        self._uri, self._what, self._every_s = storage.join(prefix, NAME), what, every_s
        self._token = secrets.token_hex(8)
        self._generation = 0
        self._taken_by: str | None = None
        self._seen_at = 0.0
        self._writing = threading.Lock()
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Self:
        seen = gcs.stat(self._uri)
        holder = _read(self._uri) if seen else None
        if seen and holder:
            self._refuse_if_alive(holder)
        try:
            self._write(seen.generation if seen else 0, None)
        except gcs.ChangedObject:
            self._refuse(_read(self._uri) or {})
        if holder:
            line = f"taking over {self._what}: {_named(holder)} died before its end"
            print(f"gaia: {line}", file=sys.stderr, flush=True)
        self._end.clear()
        self._beating = threading.Thread(target=self._beat, name="gaia-bucket-lock", daemon=True)
        self._beating.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._end.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
            # What cannot be deleted now is taken over later, as after a kill.
            with contextlib.suppress(gcs.StorageError, gcs.MissingObject):
                gcs.delete(self._uri, self._generation, gcs.Patience(_BEAT_PATIENCE_S))

    def check(self) -> None:
        """Raises FolderInUse where another process has taken this one for dead and writes now.

        A process that was cut off or asleep asks the bucket first: its next beat may be too late.
        """
        if time.monotonic() - self._seen_at > 2 * self._every_s:
            self._sign_of_life(gcs.Patience(_BEAT_PATIENCE_S, on_retry=lambda _: None))
        if self._taken_by is not None:
            raise FolderInUse(
                f"{self._what} was taken over by {self._taken_by}: this process had not reached "
                f"the bucket for {SILENT_S:.0f} s",
                "stop one of them; what this one saved before is sound",
            )

    @property
    def is_held(self) -> bool:
        """False after another process has taken over."""
        return self._taken_by is None

    def _write(self, generation: int, patience: gcs.Patience | None) -> None:
        """Replaces the object of a generation. Raises ChangedObject where it is another's."""
        facts = {**_this_process(), "token": self._token, "time": time.time()}
        try:
            data = json.dumps(facts).encode()
            self._generation = gcs.write(self._uri, data, patience, generation=generation)
            self._seen_at = time.monotonic()
        except gcs.ChangedObject:
            # An attempt whose answer was lost has written it: the next one meets itself.
            if (_read(self._uri) or {}).get("token") != self._token:
                raise
            seen = gcs.stat(self._uri)
            self._generation = seen.generation if seen else 0
            self._seen_at = time.monotonic()

    def _beat(self) -> None:
        patience = gcs.Patience(_BEAT_PATIENCE_S, self._end, on_retry=lambda _: None)
        while self._taken_by is None and not self._end.wait(self._every_s):
            self._sign_of_life(patience)

    def _sign_of_life(self, patience: gcs.Patience) -> None:
        with self._writing:
            if self._taken_by is not None:
                return
            try:
                self._write(self._generation, patience)
            except gcs.ChangedObject:
                self._taken_by = _named(_read(self._uri) or {})
            except (gcs.StorageError, gcs.MissingObject, gcs.Stopped):
                pass  # the bucket does not answer: the next beat tries again

    def _refuse_if_alive(self, holder: dict[str, Any]) -> None:
        silent = time.time() - float(holder.get("time", 0))
        if silent < SILENT_S and not _is_dead(holder):
            self._refuse(holder, silent)

    def _refuse(self, holder: dict[str, Any], silent: float = 0.0) -> NoReturn:
        raise FolderInUse(
            f"{self._what} is being written by {_named(holder)} "
            f"(last sign of life {max(0.0, silent):.0f} s ago)",
            when_to_retry(silent),
        )


def _read(uri: str) -> dict[str, Any] | None:
    try:
        holder = json.loads(gcs.read(uri))
        return holder if isinstance(holder, dict) else None
    except (gcs.MissingObject, ValueError):
        return None


def _named(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')}"


def _this_process() -> dict[str, Any]:
    """Facts by which another process of this machine can tell whether this one still lives."""
    return {"pid": os.getpid(), "host": socket.gethostname(), **_boot(), "began": _began("self")}


def _boot() -> dict[str, str]:
    """Start of the system, and the process-id namespace (containers have their own); Linux only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": "", "namespace": ""}


def _began(pid: int | str) -> str:
    """Clock ticks from the system's start to a process's (proc(5), field 22); empty: none runs.

    One that has ended keeps its number until its parent asks for it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if stat[0] in ("Z", "X") else stat[19]
    except (OSError, IndexError):
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """True where this machine can tell; another machine's processes are judged by their silence."""
    here = _this_process()
    if not here["boot"] or holder.get("host") != here["host"]:
        return False
    if holder.get("boot") != here["boot"]:
        return True  # this machine has started anew since
    return holder.get("namespace") == here["namespace"] and holder.get("began") != _began(
        holder.get("pid", 0)
    )

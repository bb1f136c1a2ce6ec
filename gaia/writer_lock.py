"""One writer at a time: a lock file that names its process, and that no dead process keeps.

The lock is flock(2) where the file system has it: the kernel lets go of it however the process
ends. The file says who holds it, and its modification time is that process's heartbeat; so another
machine that shares the folder, or a file system without flock, is judged by these.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gaia import storage
from gaia.errors import DataError

BEAT_S = 30.0
SILENT_S = 300.0  # without a heartbeat for so long, a process of another machine counts as dead


class FolderInUse(DataError):
    """Another process that lives writes there."""


class WriterLock:
    """Held while one process writes a folder; a context manager.

    Args:
        path: of the lock file. Its folder is made; the file is removed at the end.
        what: is written, for the messages: "a data set in /data/web".

    Raises:
        FolderInUse: on entering, where another process holds it.
        StorageError: on entering, where the lock file cannot be written.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self._path, self._what = Path(path), what
        self._handle: int | None = None
        self._end = threading.Event()

    def __enter__(self) -> Self:
        storage.make_folder(self._path.parent)
        while True:
            handle = self._open()
            try:
                holder = self._check_free(handle)
                # The holder before may have removed the file since it was opened here.
                if self._is_at_path(handle):
                    break
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
        if holder:
            where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
            line = f"taking over {self._what}: process {holder['pid']}{where} died before its end"
            print(f"gaia: {line}", file=sys.stderr, flush=True)
        facts = {"pid": os.getpid(), "host": socket.gethostname()}
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(facts).encode(), 0)
        except OSError as error:  # a full disk
            os.close(handle)
            raise self._unwritable(error) from error
        self._handle = handle
        self._end.clear()
        threading.Thread(target=self._beat, name="gaia-lock", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._end.set()
        handle, self._handle = self._handle, None
        if handle is not None:
            if self._is_at_path(handle):
                self._path.unlink(missing_ok=True)  # before it is let go
            os.close(handle)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> storage.StorageError:
        remedy = "copy the folder, or make it and its lock file your own"
        if error.errno in storage.FULL:
            remedy = "free some space"
        return storage.StorageError(
            f"{self._what} cannot be written ({self._path}: {error.strerror})", remedy
        )

    def _is_at_path(self, handle: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        return False

    def _check_free(self, handle: int) -> dict[str, Any] | None:
        """Takes the kernel's lock; the holder that died, or None. Raises FolderInUse."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_flock = True
        except BlockingIOError:
            self._refuse(_holder(handle))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            has_flock = False
        holder = _holder(handle)
        if holder is None:
            return None
        silent = time.time() - os.fstat(handle).st_mtime
        if holder["host"] != socket.gethostname():
            if silent < SILENT_S:
                self._refuse(holder, silent)
        elif not has_flock and _is_alive(holder["pid"]) and silent < SILENT_S:
            self._refuse(holder)
        return holder

    def _refuse(self, holder: dict[str, Any] | None, silent: float | None = None) -> None:
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        remedy = "wait for it, or choose another folder"
        if silent is not None:
            who += f" (last sign of life {max(0.0, silent):.0f} s ago)"
            remedy = when_to_retry(silent)
        raise FolderInUse(f"{self._what} is being written by {who}", remedy)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            handle = self._handle
            if handle is not None:
                with contextlib.suppress(OSError):
                    os.utime(handle)


def when_to_retry(silent: float) -> str:
    """The remedy against a process of another machine: there is none sooner that is safe.

    Args:
        silent: seconds since its last sign of life.
    """
    # Rounded up: who comes at that second finds it dead.
    left = min(SILENT_S, max(0.0, SILENT_S - silent)) + 1
    at = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
    return (
        f"wait for it; if it died or its machine has another name now, try again after {at} "
        f"(in {left:.0f} s): after {SILENT_S:.0f} s without a sign of life it is taken over"
    )


def _holder(handle: int) -> dict[str, Any] | None:
    """The process that a lock file names; None where it names none."""
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return {"pid": int(holder["pid"]), "host": str(holder["host"])}
    except (ValueError, KeyError, TypeError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # Linux: who has ended keeps its id until it is asked for
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state not in (b"Z", b"X")
    return True

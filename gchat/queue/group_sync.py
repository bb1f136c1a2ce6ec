"""One fsync for all transactions that wait for one (group commit).

A disk syncs a few hundred times a second, whatever the amount; so callers that come while a sync
runs share the next one. Nobody returns before a sync that began after its own transaction has ended
well: to each caller it is the same promise as a sync of its own.
"""

import os
import threading
from pathlib import Path


class GroupSync:
    """Syncs a file for many threads.

    Args:
        path: of the file; opened at the first sync, and kept open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._asked = self._synced = 0  # callers so far, and those whose bytes are on the disk
        self._is_syncing = False
        self._error: OSError | None = None
        self._file: int | None = None

    def wait(self) -> None:
        """Returns when all that was written to the file before the call is on the disk.

        Raises:
            OSError: a sync failed, now or before. The system drops the bytes of a failed sync, so a
                later one that succeeds would say nothing about them.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            while self._synced < mine and self._error is None:
                if self._is_syncing:
                    self._changed.wait()
                else:
                    self._lead()
            if self._error is not None:
                raise self._error

    def _lead(self) -> None:
        """Syncs for all who have come until now; the lock is free meanwhile."""
        self._is_syncing, covered = True, self._asked
        self._changed.release()
        error: OSError | None = None
        is_done = False
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(self._file)
            is_done = True
        except OSError as raised:
            error = raised
        finally:
            self._changed.acquire()
            self._is_syncing = False
            self._error = self._error or error
            if is_done:  # not where an interrupt came between
                self._synced = max(self._synced, covered)
            self._changed.notify_all()

    def close(self) -> None:
        """Closes the file."""
        with self._changed:
            while self._is_syncing:
                self._changed.wait()
            if self._file is not None:
                os.close(self._file)
                self._file = None

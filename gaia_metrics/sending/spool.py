"""The spool: OTLP requests on their way to the receiver, on disk until they are acknowledged.

Transport only: the truth is in the segments. Files `p0-00000001.otlp` hold frames as segments do
(u32 length, u32 crc32c, payload); the payload is b"m" (metrics) or b"l" (logs) and the request's
bytes. The worker appends, the sender reads from the front; a file goes when every frame in it was
acknowledged. What a killed process left is sent by its next start or by `gaia-metrics sync`;
sending something twice does no harm, as the database keeps one value per (run, metric, step).
What a receiver refuses lies in `rejected-p0-*` and is tried again now and then.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path

from gaia_metrics.storage import crc32c, frames

ROTATE_BYTES = 2 << 20
SIGNALS = re.compile(b"[ml]")
NAME = re.compile(r"p(\d+)-(\d{8})\.otlp$")


def paths(folder: Path, process: int | None = None) -> list[Path]:
    """Spool files, oldest first; of one process or of all."""
    numbered = []
    for path in folder.glob("p*.otlp"):
        match = NAME.search(path.name)
        if match and (process is None or int(match[1]) == process):
            numbered.append((int(match[1]), int(match[2]), path))
    return [path for _, _, path in sorted(numbered)]


def refused(folder: Path, process: int | None = None) -> list[Path]:
    """Requests that a receiver refused, oldest first; of one process or of all."""
    return sorted(folder.glob(f"rejected-p{'*' if process is None else process}-*"))


def read_refused(path: Path) -> tuple[bytes, bytes]:
    """(signal, request) of a refused request."""
    data = path.read_bytes()
    return data[:1], data[1:]


class Spool:
    """One process's spool. One thread appends, another one peeks and acknowledges.

    Args:
        folder: RUN/metrics/spool.
        process: process index.
        limit_bytes: beyond this the oldest unsent file is dropped and counted; the segments keep
            its values, and `gaia-metrics sync` sends them again.
    """

    def __init__(self, folder: Path, process: int, limit_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._process, self._limit = folder, process, limit_bytes
        self._crc = crc32c.load()
        self._files = paths(folder, process)
        self._sizes = {path: path.stat().st_size for path in self._files}
        last = NAME.search(self._files[-1].name) if self._files else None
        self._number = int(last[2]) if last else 0
        self._current: int | None = None  # handle of the file that is being appended to
        self._data = b""  # the front file's bytes, as far as they were read
        self._offset = 0  # end of the last acknowledged frame in the front file
        self._next = 0
        self._lock = threading.Lock()
        self.dropped_files = 0
        self.damaged = 0  # places in files that the disk had changed: their requests are lost

    @property
    def pending_bytes(self) -> int:
        """Bytes that no receiver has acknowledged."""
        with self._lock:
            return sum(self._sizes.values()) - self._offset

    def append(self, signal: bytes, request: bytes) -> None:
        """Put a request on disk; raises OSError where the disk refuses it."""
        payload = signal + request
        frame = frames.FRAME.pack(len(payload), self._crc(payload)) + payload
        with self._lock:
            if self._current is None or self._sizes[self._files[-1]] >= ROTATE_BYTES:
                self._rotate()
            assert self._current is not None
            path, done = self._files[-1], 0
            try:
                while done < len(frame):
                    done += os.pwrite(self._current, frame[done:], self._sizes[path] + done)
            except OSError:
                os.ftruncate(self._current, self._sizes[path])
                raise
            self._sizes[path] += len(frame)
            while sum(self._sizes.values()) > self._limit and len(self._files) > 1:
                self._forget_front()
                self.dropped_files += 1

    def _rotate(self) -> None:
        if self._current is not None:
            os.close(self._current)
            self._current = None
        self._number += 1
        path = self._folder / f"p{self._process}-{self._number:08d}.otlp"
        self._current = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._files.append(path)
        self._sizes[path] = 0

    def peek(self) -> tuple[bytes, bytes] | None:
        """(signal, request) of the oldest unacknowledged frame, or None."""
        with self._lock:
            while self._files:
                frame = self._front_frame()
                if frame is not None:
                    return frame[:1], frame[1:]
                if len(self._files) == 1 and self._current is not None:
                    if self._offset == 0:
                        return None  # just opened
                    os.close(self._current)  # all sent: start a new file with the next request
                    self._current = None
                self._forget_front()
            return None

    def acknowledge(self) -> None:
        """Forget the frame that `peek` returned: it has arrived."""
        with self._lock:
            self._offset = self._next

    def set_aside(self) -> Path:
        """Keep the frame that `peek` returned aside: the receiver refuses it."""
        with self._lock:
            target = self._folder / f"rejected-p{self._process}-{time.time_ns():020d}"
            try:
                target.write_bytes(self._data[self._offset + 8 : self._next])
            except OSError:  # a full disk takes a part, which is no request
                target.unlink(missing_ok=True)
                raise
            self._offset = self._next
            self._bound_refused()
            return target

    def _bound_refused(self) -> None:
        """Drop the oldest refused requests beyond the limit; the segments hold their values."""
        files = refused(self._folder, self._process)
        total = sum(path.stat().st_size for path in files)
        while total > self._limit and len(files) > 1:
            oldest = files.pop(0)
            total -= oldest.stat().st_size
            oldest.unlink(missing_ok=True)
            self.dropped_files += 1

    def refused(self) -> list[Path]:
        """Files of refused requests, oldest first; see `read_refused`."""
        return refused(self._folder, self._process)

    def close(self) -> None:
        """Close the file being appended to; what is unsent stays."""
        with self._lock:
            if self._current is not None:
                os.close(self._current)
                self._current = None

    def _front_frame(self) -> bytes | None:
        """The frame behind `_offset`, over damaged ones; None at the end or a torn one."""
        path = self._files[0]
        if len(self._data) < self._sizes[path]:
            try:
                with open(path, "rb") as file:
                    self._data = file.read()
            except FileNotFoundError:  # someone cleaned up
                return None
        payload = frames.payload(self._data, self._offset, self._crc)
        if payload is None:
            next_ = frames.behind(self._data, self._offset, self._crc, SIGNALS)
            if next_ is None:
                return None
            self.damaged += 1
            self._offset = next_
            payload = frames.payload(self._data, next_, self._crc)
            assert payload is not None
        self._next = self._offset + frames.FRAME.size + len(payload)
        return payload

    def _forget_front(self) -> None:
        path = self._files.pop(0)
        del self._sizes[path]
        self._data, self._offset, self._next = b"", 0, 0
        with contextlib.suppress(OSError):
            path.unlink()

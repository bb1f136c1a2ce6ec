"""Writing segments: one worker appends, and `repair` readies them for another attempt."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from gaia_metrics.storage import atomic, crc32c
from gaia_metrics.storage.frames import FRAME
from gaia_metrics.storage.segments import (
    SHAPE,
    VERSION,
    SegmentReader,
    number,
    paths,
)

ROTATE_BYTES = 4 << 20


class SegmentWriter:
    """Appends to the segments of one process and one attempt. Not thread-safe: one worker."""

    def __init__(self, folder: Path, process: int, header: dict) -> None:
        self._folder, self._process, self._header = folder, process, header
        self._crc = crc32c.load()
        self._number = max((number(p) for p in paths(folder, process)), default=0)
        self.paths: list[Path] = []  # of this attempt
        self._file = None
        self._size = 0
        self._shapes: dict[tuple[str, ...], tuple[int, struct.Struct]] = {}
        self._buffer: list[bytes] = []
        self._open()

    def values(self, step: int, time_ns: int, values: dict[str, float], kind: bytes = b"V") -> None:
        """Buffer one `log()`; `kind` is b"V" (training) or b"S" (system)."""
        names = tuple(values)
        known = self._shapes.get(names)
        if known is None:
            known = (len(self._shapes), struct.Struct(f"<cIqq{len(names)}d"))
            self._shapes[names] = known
            self._frame(SHAPE.pack(b"K", known[0]) + json.dumps(names).encode())
        self._frame(known[1].pack(kind, known[0], step, time_ns, *values.values()))

    def json(self, record: dict) -> None:
        """Buffer a text, histogram or alert record (`kind`, `step`, `time_ns` and its own keys)."""
        self._frame(b"J" + json.dumps(record).encode())

    def flush(self, fsync: bool) -> None:
        """Hand the buffer to the kernel (survives kill -9) and, on `fsync`, to the disk.

        Raises OSError when the disk refuses; the buffer is kept and tried again.
        """
        assert self._file is not None
        if self._buffer:
            data = b"".join(self._buffer)
            os.ftruncate(self._file, self._size)  # drops a part that a full disk let through
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._size + done)
            self._size += len(data)
            self._buffer.clear()
        if fsync:
            os.fsync(self._file)
        if self._size >= ROTATE_BYTES:
            os.fsync(self._file)
            os.close(self._file)
            self._open()

    def shed(self, limit: int) -> int:
        """Drop the buffer where a refusing disk let it grow beyond `limit` bytes; records lost."""
        if sum(map(len, self._buffer)) <= limit:
            return 0
        lost = len(self._buffer)
        self._buffer.clear()
        self._shapes.clear()  # their K frames may have been in the buffer: state them again
        if self._size == 0:
            self._frame_header()
        return lost

    def close(self) -> None:
        """Flush, fsync and close. Raises OSError when the disk refuses; it is closed all the same.

        What could not be written is then what `shed(0)` counts.
        """
        if self._file is not None:
            try:
                self.flush(fsync=True)
            finally:
                os.close(self._file)
                self._file = None

    def _open(self) -> None:
        self._number += 1
        path = self._folder / f"p{self._process}-{self._number:06d}.seg"
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        self.paths.append(path)
        atomic.sync_folder(self._folder)
        self._size = 0
        self._shapes.clear()
        self._frame_header()

    def _frame_header(self) -> None:
        self._frame(b"H" + json.dumps(self._header | {"version": VERSION}).encode())

    def _frame(self, payload: bytes) -> None:
        self._buffer.append(FRAME.pack(len(payload), self._crc(payload)) + payload)


def repair(folder: Path, process: int, keep_step: int | None) -> list[str]:
    """Make the segments of one process ready for another attempt; the names of damaged ones.

    Drops leftovers of an interrupted repair, torn last frames and, with `keep_step`, every record
    of a later step. A frame that is damaged goes alone: those behind it stay, and the file as it
    was is kept as *.damaged. Each file is replaced atomically and the whole can be repeated, so a
    kill at any moment leaves either the old file or the new one.
    """
    for path in folder.glob(f"p{process}-*.tmp"):
        path.unlink()
    damaged = []
    for path in paths(folder, process):
        reader, kept, dropped = SegmentReader(path), [], False
        for payload in reader.payloads():
            record = reader.decode(payload)
            late = keep_step is not None and record is not None and record.step > keep_step
            dropped |= late
            if not late:
                kept.append(payload)
        if reader.damaged or (reader.rest and not reader.torn):
            _keep_original(path)
            damaged.append(path.name)
        if dropped or reader.damaged:
            frames = (FRAME.pack(len(p), reader._crc(p)) + p for p in kept)
            atomic.replace(path, b"".join(frames))
        elif reader.rest:
            os.truncate(path, reader.offset)
    atomic.sync_folder(folder)
    return damaged


def _keep_original(path: Path) -> None:
    """Copy a damaged segment to a free name: it may hold what a person can still read."""
    data, copies = path.read_bytes(), damaged_copies(path.parent, path.name)
    if not any(copy.read_bytes() == data for copy in copies):  # of an interrupted repair
        more = f"-{len(copies) + 1}" if copies else ""
        atomic.replace(path.with_name(f"{path.name}.damaged{more}"), data)


def damaged_copies(folder: Path, name: str = "") -> list[Path]:
    """List the segments that `repair` kept as they were: those of one segment, or all."""
    return sorted(folder.glob(f"{name or 'p*.seg'}.damaged*"))

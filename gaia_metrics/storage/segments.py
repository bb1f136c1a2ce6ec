"""Metric segments: the one local truth of a run, append-only, framed, readable after kill -9.

A segment is a file `metrics/p0-000001.seg` (process index, number). It holds frames (frames.py),
and a payload's first byte says what it is:

    H  JSON header: format version, run id, attempt, process (always the first frame)
    K  u32 shape id, JSON list of metric names: a `log()` key set, stated once per segment
    V  u32 shape id, i64 step, i64 unix ns, one f64 per name: training values
    S  the same layout: system values; the step is the last one that was logged
    J  JSON record with "kind" (text, histogram, alert), "step" and "time"

Stating the key set once makes a value 8 bytes and encoding one `struct.pack` per `log()`; JSON
took 12 us per 20 values. Segments are rotated at 4 MB so that a mirror can copy whole files.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gaia_metrics.errors import FormatError
from gaia_metrics.storage import crc32c, frames

VERSION = 1
KINDS = re.compile(b"[HKVSJ]")
VALUES = struct.Struct("<cIqq")
SHAPE = struct.Struct("<cI")
NAME = re.compile(r"p(\d+)-(\d{6})\.seg$")


@dataclass(frozen=True)
class Record:
    """One decoded record.

    Attributes:
        kind: "header", "values", "system", "text", "histogram" or "alert".
        step: training step (for "system": the last one logged before it; -1 before the first).
        time_ns: unix nanoseconds.
        data: metric name -> value for "values" and "system", the JSON object otherwise.
    """

    kind: str
    step: int
    time_ns: int
    data: dict


class SegmentReader:
    """Reads one segment, now and again later: it remembers how far it got (for live views).

    Attributes:
        offset: end of the last whole frame.
        damaged: (offset, bytes) of what was jumped over.
        rest: bytes behind the last whole frame.
        torn: True where they look like a write that was interrupted.
        unreadable: records whose metric names stood in a damaged frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.damaged: list[tuple[int, int]] = []
        self.rest = 0
        self.torn = False
        self.unreadable = 0
        self.header: dict = {}
        self._shapes: dict[int, list[str]] = {}
        self._crc = crc32c.load()

    def read(self) -> Iterator[Record]:
        """Yield the records behind `offset`; a torn end ends it without an error."""
        for payload in self.payloads():
            record = self.decode(payload)
            if record is not None:
                yield record

    def payloads(self) -> Iterator[bytes]:
        """Yield whole, checked payloads behind `offset`, moving it along and over damaged ones."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read()
        start, begin, crc = 0, self.offset, self._crc
        while True:
            payload = frames.payload(data, start, crc)
            if payload is not None:
                start += frames.FRAME.size + len(payload)
                self.offset = begin + start
                yield payload
                continue
            next_ = frames.behind(data, start, crc, KINDS)
            if next_ is None:
                break
            self.damaged.append((begin + start, next_ - start))
            lost = data[start + frames.FRAME.size : next_][: SHAPE.size]
            start = next_
            self.offset = begin + start
            if lost[:1] == b"K" and len(lost) == SHAPE.size:
                # A key set without names: what follows must not go by an older one of this id.
                yield lost + b"[]"
        self.rest = len(data) - start
        self.torn = self.rest > 0 and frames.cut_short(data, start)

    def decode(self, payload: bytes) -> Record | None:
        """The record in a payload; None for a key set, and for values whose key set is lost.

        Payloads must come in file order.
        """
        kind = payload[:1]
        if kind in (b"V", b"S"):
            _, shape, step, time_ns = VALUES.unpack_from(payload)
            names = self._shapes.get(shape, [])
            if len(payload) != VALUES.size + 8 * len(names):
                self.unreadable += 1
                return None
            values = struct.unpack_from(f"<{len(names)}d", payload, VALUES.size)
            data = dict(zip(names, values, strict=True))
            return Record("values" if kind == b"V" else "system", step, time_ns, data)
        if kind == b"K":
            self._shapes[SHAPE.unpack_from(payload)[1]] = json.loads(payload[SHAPE.size :])
            return None
        data = json.loads(payload[1:])
        if kind == b"H":
            if data.get("version", 0) > VERSION:
                raise FormatError(f"{self.path}: version {data['version']}", "update gaia")
            self.header = data
            return Record("header", -1, data.get("time_ns", 0), data)
        return Record(data["kind"], data["step"], data["time_ns"], data)


def number(path: Path) -> int:
    """The running number in a segment's file name."""
    match = NAME.search(path.name)
    assert match is not None, path
    return int(match[2])


def process(path: Path) -> int:
    """The process index in a segment's file name."""
    match = NAME.search(path.name)
    assert match is not None, path
    return int(match[1])


def paths(folder: Path, process: int | None = None) -> list[Path]:
    """The segments in `folder`, oldest first; of one process or of all of them."""
    numbered = []
    for path in folder.glob("p*.seg"):
        match = NAME.search(path.name)
        if match and (process is None or int(match[1]) == process):
            numbered.append((int(match[1]), int(match[2]), path))
    return [path for _, _, path in sorted(numbered)]


def read_all(folder: Path, process: int | None = None) -> Iterator[Record]:
    """Every whole record in a folder of segments, in the order it was written."""
    for path in paths(folder, process):
        yield from SegmentReader(path).read()

"""metrics.jsonl: one JSON object per step, derived from the segments.

Values of one step arrive in several `log()` calls: losses up to two steps late, eval results
after minutes. So the newest OPEN steps wait in memory; older ones are written in order. A value
that comes later still is merged by rewriting the tail of the file from that step's line on, in
one write that only ever grows (a reader sees the old or the new line, kill -9 too); for a step
further back than TAIL lines the file is derived anew at the end.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gaia_metrics.storage import atomic, segments

_FORMS: dict[tuple[str, ...], str] = {}
OPEN = 3
TAIL = 64
TAIL_BYTES = 1 << 20


def dumps(step: int, time_ns: int, values: dict[str, float]) -> bytes:
    """One line. NaN and infinities become strings: the file stays valid JSON for every reader."""
    if math.isfinite(sum(values.values())):
        # One % for the whole line: half of what json.dumps takes, the rest is printing floats.
        names = tuple(values)
        form = _FORMS.get(names)
        if form is None:
            form = _FORMS[names] = _form(names)
        return (form % (step, time_ns / 1e9, *values.values())).encode()
    line: dict = {"step": step, "time": round(time_ns / 1e9, 3)}
    line |= {k: v if math.isfinite(v) else named(v) for k, v in values.items()}
    return json.dumps(line).encode() + b"\n"


def _form(names: tuple[str, ...]) -> str:
    """The line of one key set with places for step, time and values."""
    if len(_FORMS) > 1000:  # key sets that never come again
        _FORMS.clear()
    pairs = (f"{json.dumps(name)}: ".replace("%", "%%") + "%r" for name in names)
    return ", ".join(['{"step": %d', '"time": %.3f', *pairs]) + "}\n"


def named(value: float) -> str:
    """NaN, Infinity or -Infinity, as ECMAScript spells them (Python's float() reads all three)."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def loads(line: str | bytes) -> dict:
    """Read a line back: the three strings become floats again."""
    values = json.loads(line)
    return {k: float(v) if isinstance(v, str) else v for k, v in values.items()}


class JsonlFile:
    """The derived file of one run. Not thread-safe: only the worker calls it.

    What an earlier attempt left there (in order, as `derive` writes it) is gone on from.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        self._size = os.fstat(self._file).st_size  # where the next line goes
        self._end = self._size  # where the file ends: beyond _size while a rewrite is due
        self._open: dict[int, tuple[int, dict[str, float]]] = {}
        self._tail: dict[int, tuple[int, int, dict[str, float]]] = {}  # step -> offset, ns, values
        self._last = -1  # highest step that is in the file
        self.stale = False  # a value came for a line further back than the tail
        self._read_tail()

    @property
    def last(self) -> int:
        """The highest step that is in the file, -1 where there is none."""
        return self._last

    def _read_tail(self) -> None:
        start = max(0, self._size - TAIL_BYTES)
        offset = start
        for number, data in enumerate(os.pread(self._file, TAIL_BYTES, start).splitlines(True)):
            if number or not start:  # the first one may have lost its beginning
                line = loads(data)
                self._last = int(line.pop("step"))
                self._tail[self._last] = (offset, round(line.pop("time", 0.0) * 1e9), line)
            offset += len(data)
        for old in list(self._tail)[:-TAIL]:
            del self._tail[old]

    def add(self, step: int, time_ns: int, values: dict[str, float]) -> bool:
        """Merge one `log()`. False where the step lies too far back to be merged in place."""
        line = self._open.get(step)
        if line is not None:
            line[1].update(values)
        elif step > self._last:
            self._open[step] = (time_ns, dict(values))
        elif self._tail and step >= min(self._tail):
            self._reopen(step)
            first_ns, old = self._open.get(step, (time_ns, {}))
            self._open[step] = (first_ns, old | values)
        else:
            self.stale = True
            return False
        return True

    def _reopen(self, step: int) -> None:
        """Take the lines from `step` on back into memory; the file keeps its bytes for now."""
        later_steps = sorted(s for s in self._tail if s >= step)
        self._size = self._tail[later_steps[0]][0]
        for later in later_steps:
            _, time_ns, values = self._tail.pop(later)
            self._open.setdefault(later, (time_ns, values))

    def write(self, through: int = -1, keep_open: int = OPEN) -> None:
        """Write lines in order: steps <= `through`, and all but the newest `keep_open` steps."""
        if self._size < self._end:  # reopened lines go back together, or the file would be torn
            through = max(through, self._last)
        steps = sorted(self._open)
        older = len(steps) - keep_open
        chosen = [step for i, step in enumerate(steps) if i < older or step <= through]
        if not chosen:
            return
        chunk, offset = [], self._size
        for step in chosen:
            time_ns, values = self._open[step]
            data = dumps(step, time_ns, values)
            chunk.append(data)
            self._tail[step] = (offset, time_ns, values)
            offset += len(data)
        data, done = b"".join(chunk), 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._size + done)
        if offset < self._end:
            os.ftruncate(self._file, offset)
        self._size = self._end = offset
        self._last = max(self._last, chosen[-1])
        for step in chosen:
            del self._open[step]
        for old in list(self._tail)[: max(0, len(self._tail) - TAIL)]:
            del self._tail[old]

    def shed(self) -> None:
        """Forget lines that a refusing disk holds back; `finish` derives them where it can."""
        self._open.clear()
        self.stale = True

    def fsync(self) -> None:
        """Wait until the file is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Write what is open, fsync and close."""
        try:
            self.write(keep_open=0)
            self.fsync()
        finally:
            os.close(self._file)


def derive(records: Iterable[segments.Record], path: Path) -> int:
    """Write `path` anew from the segments' values, atomically; the highest step, or -1.

    What only the old file has stays: a damaged or missing segment may have held it.
    """
    lines: dict[int, tuple[int, dict[str, float]]] = {}
    for record in records:
        if record.kind == "values":
            if record.step in lines:
                lines[record.step][1].update(record.data)
            else:
                lines[record.step] = (record.time_ns, record.data)
    for step, time_ns, values in _ascending(path):
        known = lines.setdefault(step, (time_ns, values))[1]
        for name in values:
            known.setdefault(name, values[name])
    data = b"".join(dumps(step, *lines[step]) for step in sorted(lines))
    atomic.replace(path, data)
    return max(lines, default=-1)


def _ascending(path: Path) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Yield the old lines as (step, ns, values), without those whose step a disk has changed.

    Such a step is out of order: beyond that of the next line, or not beyond the one before.
    """
    before, waiting = -1, None
    for step, _, line in whole_lines(path):
        if waiting is not None and waiting[0] < step:
            yield waiting
            before = waiting[0]
        elif step <= before:
            continue
        time_s = line.get("time")
        values = {
            name: float(value)
            for name, value in line.items()
            if name not in ("step", "time") and isinstance(value, int | float)
        }
        waiting = step, round(time_s * 1e9) if isinstance(time_s, int | float) else 0, values
    if waiting is not None:
        yield waiting


def whole_lines(path: Path) -> Iterator[tuple[int, bytes, dict]]:
    """Yield (step, line, content) of each line that is whole."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                content = loads(line)
                step = content["step"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if line.endswith(b"\n") and isinstance(step, int):
                yield step, line, content


def trim(path: Path, keep_step: int | None) -> int:
    """Drop a torn line and those of later steps.

    Returns the highest step left, or -1.
    """
    kept, last = [], -1
    for step, line, _ in whole_lines(path):
        if keep_step is None or step <= keep_step:
            kept.append(line)
            last = max(last, step)
    data = b"".join(kept)
    if path.exists() and path.stat().st_size != len(data):
        atomic.replace(path, data)
    return last

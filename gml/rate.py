"""Rate limits kept by ourselves, across all gml processes of this user."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def turn(path: Path, gaps: Mapping[str, float]) -> Iterator[None]:
    """Waits until every gap (seconds since the last call of that kind) has passed, then holds on.

    Args:
        path: a file that remembers the last calls; whoever locks it is the one who calls.
        gaps: the kinds of this call, each with its gap.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        # Without a file the gaps are kept at least by this process: a machine may have to go.
        time.sleep(max(gaps.values()))
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        last = _read(handle)
        due = max(last.get(kind, 0.0) + gap for kind, gap in gaps.items())
        # A clock that was set back must not stop us for long.
        time.sleep(min(max(0.0, due - time.time()), max(gaps.values())))
        try:
            # Noted before, in case we are killed in the call, and after it: what counts over there
            # is when it arrived, which was no later than its answer.
            _note(handle, last, gaps)
            yield
        finally:
            _note(handle, last, gaps)
    finally:
        os.close(handle)


def _read(handle: int) -> dict[str, float]:
    try:
        raw = json.loads(os.pread(handle, 200, 0) or b"{}")
        return {str(k): float(v) for k, v in raw.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _note(handle: int, last: dict[str, float], kinds: Mapping[str, float]) -> None:
    last.update(dict.fromkeys(kinds, time.time()))
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(last).encode(), 0)

"""Processes of one turn, wherever they hid: descendants, and those that carry the turn's mark.

A child that calls setsid, or whose parent dies, leaves its process group and its parent. It cannot
leave two things: the nearest ancestor that is a subreaper (prctl(2)) adopts it, and its environment
holds the mark that the turn began with.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

MARK = "GAIA_TURN"
"""Variable in the environment of everything that a turn starts."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 1, 36, 37
_PAUSE_S = 0.02


def become_subreaper() -> None:
    """Makes this process the parent of all orphans below it; Linux only, no-op elsewhere."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """The parent of all orphans below this process inside of it; afterwards what it was before.

    Who stays one and reaps nobody leaves zombies, whose ids look like those of running processes.
    """
    before = ctypes.c_int(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    become_subreaper()
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, before.value)


def end_with_parent() -> None:
    """Asks for SIGTERM when the parent dies, however it does; Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def below() -> list[psutil.Process]:
    """All descendants of this process that still run."""
    return [one for one in psutil.Process().children(recursive=True) if _runs(one)]


def marked(mark: str) -> list[psutil.Process]:
    """All processes of this user that carry a mark, wherever they hang, but this one."""
    kept = []
    for one in psutil.process_iter():
        try:
            if one.pid != os.getpid() and one.environ().get(MARK) == mark and _runs(one):
                kept.append(one)
        except psutil.Error:
            continue  # it ended, or is somebody else's
    return kept


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def described(process: psutil.Process) -> str:
    """`PID name`, for people."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:80] or process.name()}"
    except psutil.Error:
        return str(process.pid)


def kill(find: Callable[[], Sequence[psutil.Process]], ended: dict[int, int] | None = None) -> int:
    """Kills all that `find` gives until it gives none; how many.

    All are stopped first, so that none of them can start another one meanwhile.

    Args:
        find: gives the processes that still run.
        ended: gets the exit statuses of children that end here, as `reap` gives them.
    """
    killed: set[int] = set()
    while True:
        stopped: set[int] = set()
        while new := [one for one in find() if one.pid not in stopped]:
            for one in new:
                stopped.add(one.pid)
                tell(one, signal.SIGSTOP)
        if not stopped:
            return len(killed)
        for one in find():
            tell(one, signal.SIGKILL)
            killed.add(one.pid)
        statuses = reap()
        if ended is not None:
            ended |= statuses
        time.sleep(_PAUSE_S)


def tell(process: psutil.Process, number: signal.Signals) -> None:
    """Sends a signal to a process that may be gone already."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def reap() -> dict[int, int]:
    """Exit statuses of children that have ended, by their ids; -N for signal N."""
    ended = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)

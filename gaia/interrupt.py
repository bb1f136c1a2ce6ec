"""Signals that end a command: other handlers for a while, and Ctrl-C while a command starts.

Python's own KeyboardInterrupt may arrive inside an import or a callback of a C extension, where it
becomes another error, a traceback, or nothing at all. Until something is written there is nothing
to tidy up, so while a command starts Ctrl-C ends the process at once, on one line.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it: 128 and the number of SIGINT."""

_ours: list[object] = []


def end_on_interrupt(program: str) -> None:
    """Makes Ctrl-C end this process, until `raise_on_interrupt`.

    Args:
        program: name in the line on stderr.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        try:
            os.write(2, f"\n{program}: interrupted\n".encode())
        finally:
            os._exit(INTERRUPTED)

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not nohup's
    if is_default and threading.current_thread() is threading.main_thread():
        _ours.append(end)
        signal.signal(signal.SIGINT, end)


def raise_on_interrupt() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again: from here on there is something to tidy up."""
    if _ours and signal.getsignal(signal.SIGINT) in _ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _ours.clear()


@contextlib.contextmanager
def hearing(
    handler: Callable[[int, Any], object] | signal.Handlers, *numbers: signal.Signals
) -> Iterator[None]:
    """Another handler for these signals inside of it; only the main thread can have one.

    A signal that is ignored already stays so: `nohup` and a shell's background jobs mean it.
    """
    here = threading.current_thread() is threading.main_thread()
    heard = [s for s in numbers if here and signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)

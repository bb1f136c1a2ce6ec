"""Ctrl-C while a command starts: it ends the process at once, on one line.

Python's own KeyboardInterrupt may arrive inside an import or a callback of a C extension, where it
becomes another error, a traceback, or nothing at all. Until something is written there is nothing
to tidy up, so the process simply ends.
"""

import os
import signal
import threading
from types import FrameType

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

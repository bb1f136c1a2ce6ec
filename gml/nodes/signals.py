"""Signals during the life of a node: what unwinds, and what must not be interrupted."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _signals(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Another handler for these signals inside of it; only the main thread can have one.

    A signal that is ignored already stays so: `nohup` and a shell's background jobs mean it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [s for s in numbers if signal.getsignal(s) is not signal.SIG_IGN]
    previous = {s: signal.signal(s, handler) for s in heard}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def terminate_is_interrupt() -> contextlib.AbstractContextManager[None]:
    """SIGTERM and SIGHUP (a closed terminal) unwind like Ctrl-C, so that `undo` runs."""

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    return _signals(raise_interrupt, signal.SIGTERM, signal.SIGHUP)


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Ignores Ctrl-C, SIGTERM and SIGHUP inside of it."""
    return _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

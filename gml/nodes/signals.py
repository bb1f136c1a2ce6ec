"""Signals during the life of a node: what unwinds, and what must not be interrupted."""

from __future__ import annotations

import contextlib
import signal

from gaia.interrupt import hearing


def terminate_is_interrupt() -> contextlib.AbstractContextManager[None]:
    """SIGTERM and SIGHUP (a closed terminal) unwind like Ctrl-C, so that `undo` runs."""

    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    return hearing(raise_interrupt, signal.SIGTERM, signal.SIGHUP)


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Ignores Ctrl-C, SIGTERM and SIGHUP inside of it."""
    return hearing(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

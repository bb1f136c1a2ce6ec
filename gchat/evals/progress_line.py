"""Progress of an evaluation: on one terminal line, or a line now and then."""

import sys
import time
from collections.abc import Callable

_EVERY_S = 10.0  # between lines where there is no terminal


class ProgressLine:
    """Shows the newest of many texts.

    Args:
        say: prints a line where there is no terminal.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._stream = say, sys.stderr
        self._last = time.perf_counter()

    def show(self, text: Callable[[], str]) -> None:
        """Shows a text, if its time has come; it is made only then."""
        now, terminal = time.perf_counter(), self._stream.isatty()
        if not terminal and now - self._last < _EVERY_S:
            return
        self._last = now
        if terminal:
            self._stream.write(f"\r{text():<79}")
            self._stream.flush()
        else:
            self._say(text())

    def end(self) -> None:
        """Clears the terminal line."""
        if self._stream.isatty():
            self._stream.write("\r" + " " * 79 + "\r")
            self._stream.flush()


def clock(seconds: float) -> str:
    """`4:05` or `2:03:09`; `?` for a time that nobody knows."""
    if seconds == float("inf"):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"

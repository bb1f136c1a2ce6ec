"""Output that may go away: a closed terminal or pipe must not end what it only watches."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Lenient:
    """A text stream whose writes go nowhere once they fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or lets the rest of the output go nowhere."""
        try:
            return self._stream.write(text)
        except OSError:  # BrokenPipeError: the reader is gone; EIO: the terminal is
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flushes, or lets the rest of the output go nowhere."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        # Also below Python: libraries write to the descriptor, and its buffer is flushed at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def may_go_away() -> Iterator[None]:
    """Within it nobody is stopped by standard output or error that cannot be written any more."""
    streams: Any = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Lenient(stream) for stream in streams)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams

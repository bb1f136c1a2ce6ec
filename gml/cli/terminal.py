"""The terminal: one progress line and questions on stderr, tables and JSON on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import select
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from gml.clock import service_clock
from gml.durations import format_duration
from gml.errors import UsageError

if TYPE_CHECKING:
    from gml.model import Node

_CLEAR = "\r\x1b[K"
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

# The spinner that is on the terminal now; lines of `say` have to go above it.
_shown: Spinner | None = None


class Spinner:
    """A spinner with the current step, the time it took so far, and the cost of the machine.

    Without a terminal it prints each new step once, as a line. Nothing is counted before `bill`:
    looking for capacity costs nothing. While a job's log streams to the same terminal (`streaming`)
    it keeps still.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = time.monotonic()
        self._billed: tuple[float, float, float] | None = None
        self.text = ""
        self._tty = sys.stderr.isatty()
        self._stop = threading.Event()
        self._still = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Spinner:
        global _shown
        if self._tty and not self.quiet:
            _shown = self
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _shown
        self._stop.set()
        if self._thread:
            self._thread.join()
            _shown = None
            _write(_CLEAR)

    def __call__(self, step: str) -> None:
        """Shows the current step."""
        if step == self.text:
            return
        self.text = step
        if (not self._tty or self._still) and not self.quiet:
            _write(f"gml: {step}\n")

    def write(self, text: str) -> None:
        """A line above the spinner."""
        with self._lock:
            _write(f"{_CLEAR}{text}\n")

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Draws nothing meanwhile."""
        with self._lock:
            self._still = True
            _write(_CLEAR)
        try:
            yield
        finally:
            self._still = False

    def bill(self, node: Node) -> None:
        """Shows the cost of this node from now on, beginning with its cost so far."""
        spent = node.cost(service_clock.now())
        if spent is not None and node.price:
            self._billed = (time.monotonic(), spent, node.price)

    def _line(self, frame: int) -> str:
        now, cost = time.monotonic(), ""
        if self._billed:
            since, spent, price = self._billed
            cost = f" · ${spent + price * (now - since) / 3600:.2f} so far"
        mark = _FRAMES[frame % len(_FRAMES)]
        line = f"{mark} {self.text} · {format_duration(now - self.started)}{cost}"
        return line[: shutil.get_terminal_size().columns - 1]

    def _spin(self) -> None:
        frame = 0
        while not self._stop.wait(0.1):
            with self._lock:
                if not self._still:
                    _write(f"{_CLEAR}{self._line(frame)}")
            frame += 1


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout stays for results."""
    if _shown:
        _shown.write(text)
    else:
        _write(f"{text}\n")


def _write(text: str) -> None:
    """To stderr, which may be gone or full: what is only shown must not stop what is done."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


class Lasting(io.RawIOBase):
    """A binary output that takes everything, also once its reader is gone or its disk is full.

    For the log of a job that has to be brought to its end: results fetched, the node deleted.
    """

    def __init__(self, out: BinaryIO) -> None:
        self.out: BinaryIO | None = out

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Tells whether the output is a terminal."""
        return self.out is not None and self.out.isatty()

    def write(self, data: Any) -> int:
        """Writes what still can be written."""
        try:
            if self.out is not None:
                self.out.write(data)
                self.out.flush()
        except (OSError, ValueError):
            self.out = None
        return len(data)


def nobody_reads() -> bool:
    """Tells whether the reader of stdout (a pipe, a terminal) has gone away."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def streaming(sink: BinaryIO | None) -> contextlib.AbstractContextManager[None]:
    """While `sink` (stdout where None) gets a log: no spinner in between on a terminal."""
    out = sys.stdout.buffer if sink is None else sink
    return _shown.still() if _shown and out.isatty() else contextlib.nullcontext()


def emit(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, default=_plain), flush=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> None:
    """A plain table on stdout."""
    cells = [[str(c) for c in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


_assumed = False


def assume_yes(yes: bool) -> None:
    """`--yes` on the command line: `confirm` asks nothing."""
    global _assumed
    _assumed = yes


def confirm(question: str, *, scripts_may: bool = False) -> None:
    """Asks on the terminal; raises UsageError on "no", or where nobody can answer.

    `scripts_may`: without a terminal go ahead, for acts that are safe to forget about (deleting).
    """
    if _assumed:
        return
    if not sys.stdin.isatty():
        if scripts_may:
            return
        raise UsageError(f"{question.rstrip('?')}? that needs an answer", "add --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("stopped", "nothing was changed")

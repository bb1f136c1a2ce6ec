"""The terminal: one progress line and questions on stderr, tables and JSON on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

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
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def __call__(self, step: str) -> None:
        """Shows the current step."""
        if step == self.text:
            return
        self.text = step
        if (not self._tty or self._still) and not self.quiet:
            print(f"gml: {step}", file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """A line above the spinner."""
        with self._lock:
            print(f"{_CLEAR}{text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Draws nothing meanwhile."""
        with self._lock:
            self._still = True
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
        try:
            yield
        finally:
            self._still = False

    def bill(self, node: Node) -> None:
        """Shows the cost of this node from now on, beginning with its cost so far."""
        spent = node.cost(time.time())
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
                    sys.stderr.write(f"{_CLEAR}{self._line(frame)}")
                    sys.stderr.flush()
            frame += 1


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout stays for results."""
    if _shown:
        _shown.write(text)
    else:
        print(text, file=sys.stderr, flush=True)


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

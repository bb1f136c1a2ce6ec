"""What the terminal shows: one progress line on stderr, tables and JSON on stdout, questions."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gml.durations import format_duration
from gml.errors import UsageError

if TYPE_CHECKING:
    from gml.model import Node

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """A spinner that says what is done, how long by now, and what the machine has cost so far.

    Without a terminal it prints each new step once, as a line. Nothing is counted before `bill`:
    looking for capacity costs nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = time.monotonic()
        self._billed: tuple[float, float, float] | None = None
        self.text = ""
        self._tty = sys.stderr.isatty()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._tty and not self.quiet:
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __call__(self, what: str) -> None:
        """Says what is being waited for now."""
        if what == self.text:
            return
        self.text = what
        if not self._tty and not self.quiet:
            print(f"gml: {what}", file=sys.stderr, flush=True)

    def bill(self, node: Node) -> None:
        """Counts from now on what this node costs, beginning with what it has cost already."""
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
            sys.stderr.write(f"\r\x1b[K{self._line(frame)}")
            sys.stderr.flush()
            frame += 1


def say(text: str) -> None:
    """A line for people, on stderr, so that stdout stays for results."""
    print(text, file=sys.stderr, flush=True)


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

"""A child that tidies up at its end: signals are passed on to it, and it is never killed."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from gaia.interrupt import hearing

POLL_S = 0.2
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """An ended child: its exit status, and the signal that was passed on to it, if any."""

    status: int
    heard: int | None = None

    def raise_if_interrupted(self) -> None:
        """Raises what the signal would have raised here."""
        if self.heard == signal.SIGINT:
            raise KeyboardInterrupt
        if self.heard is not None:
            raise SystemExit(128 + self.heard)


def run(
    command: Sequence[str], out: TextIO | None = None, on_signal: Callable[[], None] = lambda: None
) -> Ended:
    """Runs a command to its end, however long it takes to tidy up after a signal.

    Args:
        command: words of the command.
        out: where its standard output goes; None for ours.
        on_signal: called when the first signal has been passed on.
    """
    heard: list[int] = []
    told = False
    with hearing(lambda number, _frame: heard.append(number), *_PASSED_ON):
        # A session of its own: the terminal sends Ctrl-C to all of ours, and the child would hear
        # it twice, the second time in the middle of its tidying up.
        process = subprocess.Popen(list(command), stdout=out, start_new_session=True)
        while process.poll() is None:
            if heard and not told:
                told = True
                process.send_signal(heard[0])
                with contextlib.suppress(OSError):  # a closed terminal: the child is still at work
                    on_signal()
            time.sleep(POLL_S)
    return Ended(process.returncode, heard[0] if heard else None)

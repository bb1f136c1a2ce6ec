"""What keeps a long run safe: stopping on request without losing a step."""

import signal
import sys
from types import FrameType


class StopRequest:
    """Turns the first SIGTERM or Ctrl-C into a flag that the loop reads between steps.

    A second Ctrl-C interrupts at once. Use as a context manager; the previous handlers return
    on exit.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {
            s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = name
        # Not print(): the handler may interrupt a print of the main thread.
        sys.stderr.write(f"\n{name}: finishing this step, then saving (Ctrl-C again to abort)\n")

    def __bool__(self) -> bool:
        return self.signal is not None

"""The one thread that runs the engines of a server."""

import logging
import threading
from collections.abc import Sequence

from gchat.engine.engine import Engine

_log = logging.getLogger("gchat.serve")


class Driver:
    """Calls `step` of each engine that has something to do, in turn; waits when none has.

    Args:
        engines: on one set of devices, so that one thread is right.

    Attributes:
        steps: calls of `Engine.step` so far.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = list(engines)
        self._news = threading.Event()
        self._stopping = False
        self.steps = 0
        # A daemon: when the process must end, it does not wait for a step of the device.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Says that an engine has something to do."""
        self._news.set()

    def stop(self, patience_s: float = 10.0) -> None:
        """Ends the thread after the step it is in."""
        self._stopping = True
        self._news.set()
        self._thread.join(patience_s)

    @property
    def needed(self) -> bool:
        """Tells whether there is an engine to run."""
        return bool(self._engines)

    @property
    def alive(self) -> bool:
        """Tells whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._news.clear()  # before looking, so that news that come meanwhile are not lost
            busy = [engine for engine in self._engines if not engine.idle]
            for engine in busy:
                self.steps += 1  # before it: who sees the engine idle sees its last step counted
                try:
                    engine.step()
                except Exception:  # the engine has ended the requests concerned
                    _log.exception("a step of the engine failed")
                    self._news.wait(0.1)  # were it to fail for ever, not at full speed
            if not busy:
                self._news.wait()

"""The same for several clouds or hosts at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


def in_parallel(calls: Sequence[Callable[[], None]]) -> None:
    """Runs every call in a thread of its own, and returns when all have ended.

    What a call raises is lost: it has to keep its result, or its error, itself.
    """
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

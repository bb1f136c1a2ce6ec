"""The callable by which long operations tell their current step to whoever shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

# Called with each new step, as a person should read it. It may raise (nobody reads any more).
Progress = Callable[[str], None]


def silent(step: str) -> None:
    """Shows nothing."""


def unbreakable(progress: Progress) -> Progress:
    """The same, but never raising: what removes a machine does not depend on being shown."""

    def tell(step: str) -> None:
        with contextlib.suppress(Exception):
            progress(step)

    return tell

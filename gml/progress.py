"""The callable by which long operations tell their current step to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

# Called with each new step, as a person should read it. It may raise, and nothing that removes a
# machine may depend on it.
Progress = Callable[[str], None]


def silent(step: str) -> None:
    """Shows nothing."""

"""Numbers that a worker keeps to, and those that it counts."""

from collections import Counter
from dataclasses import dataclass, field

from gaia.errors import ConfigError


@dataclass
class Tally:
    """Counts of a worker so far."""

    done: int = 0
    failed: int = 0
    """Attempts that came to nothing."""
    lost: int = 0
    """Answers that came after their lease had gone to another worker."""
    released: int = 0
    """Items given back untouched at the end."""
    running: int = 0
    busy_s: float = 0.0
    """Seconds of all attempts together."""
    wall_s: float = 0.0
    paused_s: float = 0.0
    """Seconds in which the endpoint let nobody ask."""
    cost: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    """Failed attempts by reason."""


@dataclass(frozen=True)
class Rules:
    """Numbers that a worker keeps to.

    Attributes:
        concurrency: items in work at once.
        lease_s: seconds that a dead worker's items stay hidden; renewed at a third of it.
        wait: stay when nothing is left to do.
        grace_s: seconds that running items get when the worker is stopped.
        backoff_s: seconds before the second attempt of an item; doubled with each.
        patience_s: seconds with an endpoint that lets nobody ask.
    """

    concurrency: int = 64
    lease_s: float = 120.0
    wait: bool = False
    grace_s: float = 5.0
    backoff_s: float = 2.0
    patience_s: float = 600.0

    def check(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        if self.concurrency < 1:
            raise ConfigError(f"concurrency is {self.concurrency}", "use at least 1")
        for name in ("lease_s", "grace_s", "backoff_s", "patience_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "lease_s" and value <= 0):
                raise ConfigError(f"{name} is {value}", "use seconds")

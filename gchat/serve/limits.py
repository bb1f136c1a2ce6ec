"""Rates that each holder of a key may use up: requests and tokens per minute."""

import time
from collections.abc import Callable

from gchat.serve.errors import busy


class Bucket:
    """Fills up at a steady rate to what a minute allows, and is emptied by use.

    Args:
        per_minute: what a minute allows.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_minute / 60, clock
        self._most = max(1.0, per_minute)  # less than one would let nobody in, ever
        self._level, self._at = self._most, clock()

    def wait_s(self) -> float:
        """Seconds until something may be taken again: 0 where it may be now."""
        self._fill()
        return 0.0 if self._level >= 1 else (1 - self._level) / self._rate

    def take(self, amount: float) -> None:
        """Takes what was used; the level may fall below zero, and then has to recover."""
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now


class Rates:
    """One bucket of requests and one of tokens for each holder of a key.

    Args:
        requests: that a holder may send in a minute; None for any number.
        tokens: of prompts and answers that a holder may use in a minute; None for any number.
    """

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._limits = {"requests": requests, "tokens": tokens}
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def begin(self, holder: str) -> None:
        """Counts a request.

        Raises:
            ApiError: 429, with the seconds to wait.
        """
        buckets = {
            unit: self._bucket(unit, holder, limit)
            for unit, limit in self._limits.items()
            if limit is not None
        }
        for unit, bucket in buckets.items():
            if wait_s := bucket.wait_s():
                raise busy(f"rate limit: {self._limits[unit]:g} {unit} per minute", wait_s)
        if "requests" in buckets:
            buckets["requests"].take(1)

    def used(self, holder: str, tokens: int) -> None:
        """Counts tokens of a request that has been answered, or broken off."""
        limit = self._limits["tokens"]
        if limit is not None:
            self._bucket("tokens", holder, limit).take(tokens)

    def _bucket(self, unit: str, holder: str, limit: float) -> Bucket:
        return self._buckets.setdefault((unit, holder), Bucket(limit))

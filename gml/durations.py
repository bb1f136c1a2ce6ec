"""Durations as people write them (`3hr`, `90m`, `1h30m`) and as they like to read them."""

from __future__ import annotations

import re
import time

from gml.errors import UsageError

_UNITS = {
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hr": 3600, "hrs": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
}  # fmt: skip
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")

MIN_TIMEOUT_S = 60
MAX_TIMEOUT_S = 30 * 86400


def parse_duration(text: str, field: str = "duration") -> int:
    """Seconds in `3hr`, `3h`, `90m`, `1h30m`, `2 days`.

    Raises:
        UsageError: no unit, unknown unit, or nothing at all.
    """
    lowered = text.strip().lower()
    parts = _PART.findall(lowered)
    if not parts or "".join(n + u for n, u in parts) != re.sub(r"\s+", "", lowered):
        raise UsageError(f"{field} {text!r} is not a duration", "write 3h, 90m or 1h30m")
    for _, unit in parts:
        if unit not in _UNITS:
            raise UsageError(f"{field} {text!r} has the unknown unit {unit!r}", "use s, m, h or d")
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts))


def parse_timeout(text: str | None, default: str = "", field: str = "--timeout") -> int:
    """The mandatory lifetime of a node, in seconds.

    Raises:
        UsageError: missing (and no default configured), below a minute or above 30 days.
    """
    text = text or default
    if not text:
        raise UsageError(
            "--timeout is missing",
            "every machine needs an end: say --timeout 3h, or set default_timeout in config.toml",
        )
    seconds = parse_duration(text, field)
    if not MIN_TIMEOUT_S <= seconds <= MAX_TIMEOUT_S:
        size = "short" if seconds < MIN_TIMEOUT_S else "long"
        raise UsageError(f"{field} {text} is too {size}", "take between 1 minute and 30 days")
    return seconds


def format_duration(seconds: float) -> str:
    """`2h05m`, `7m30s`, `12s`, `-3m00s`."""
    sign, left = ("-" if seconds < 0 else ""), round(abs(seconds))
    if left < 60:
        return f"{sign}{left}s"
    if left < 3600:
        return f"{sign}{left // 60}m{left % 60:02d}s"
    if left < 2 * 86400:
        return f"{sign}{left // 3600}h{left % 3600 // 60:02d}m"
    return f"{sign}{left // 86400}d{left % 86400 // 3600:02d}h"


def format_time(when: float) -> str:
    """`2026-11-20 21:05 UTC` of unix seconds."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))

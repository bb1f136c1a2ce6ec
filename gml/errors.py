"""Errors of gml: each says what is wrong and what to do, and carries the exit code scripts see.

Exit codes: 0 done · 2 wrong use or configuration · 3 not signed in · 4 permission denied or API
disabled · 5 quota · 6 no capacity anywhere · 7 not found · 8 the service does not answer ·
9 another gml is working on the same node · 10 refused because it would not be safe ·
11 could not look everywhere or could not delete everything · 130 interrupted. `gml run`, `exec`,
`connect` and `logs -f` pass on the exit code of the remote command instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class GmlError(Exception):
    """A failure the user can act on: one line `problem; remedy`, exit code `code`."""

    code = 2
    # A provider's first answer to this very call was a refusal: it changed nothing there.
    refused = False
    # The create that raised this has made nothing at all, so nothing has to be looked for.
    nothing_made = False
    # Where a create met it; '' for other failures.
    zone = ""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(GmlError):
    """An argument or a configuration field has a value that cannot work."""


class AuthError(GmlError):
    """Credentials are missing, expired or wrong."""

    code = 3


class Denied(GmlError):
    """Signed in, but the permission is missing or the API is disabled."""

    code = 4


class QuotaError(GmlError):
    """The project's quota forbids it; waiting does not help."""

    code = 5


class StockOut(GmlError):
    """No capacity now; another zone or a later try may work."""

    code = 6


class Elsewhere(GmlError):
    """Not to be had in this zone, whatever its capacity; another zone may offer it."""

    code = 6


class NotFound(GmlError):
    """No such node, job or host."""

    code = 7


class Unavailable(GmlError):
    """The service or the machine does not answer, after retries."""

    code = 8


class RateLimited(Unavailable):
    """Too many requests in a short time: whatever was asked about goes on all the same."""


class Busy(GmlError):
    """Another gml process holds the lock of this node."""

    code = 9


class Unsafe(GmlError):
    """Refused: nothing would guarantee that the machine goes away."""

    code = 10


class Incomplete(GmlError):
    """Could not look everywhere, or could not delete everything. `seen` holds what was there."""

    code = 11

    def __init__(self, problem: str, remedy: str = "", seen: Sequence[Any] = ()) -> None:
        super().__init__(problem, remedy)
        self.seen = list(seen)

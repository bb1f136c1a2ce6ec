"""Errors that the site answers: a status, one line for people, and the field that is wrong."""

import json
from typing import Any


class Fault(Exception):
    """A request that gets an error for an answer.

    Args:
        status: HTTP status.
        message: one line for people; it must hold no secret.
        field: of the request, that is wrong.
        after_s: seconds until it makes sense to come again.
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.after_s = after_s

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        field = {} if self.field is None else {"field": self.field}
        return {"error": {"message": self.message, **field}}

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        made = {"Cache-Control": "no-store"}
        if self.after_s is not None:
            made["Retry-After"] = str(max(1, round(self.after_s)))
        return made

    def raw(self) -> bytes:
        """The error as the body of an answer."""
        return json.dumps(self.body(), ensure_ascii=False).encode()


def missing(what: str) -> Fault:
    """Something that is not there, or belongs to somebody else: both are answered alike."""
    return Fault(404, f"there is no such {what}")

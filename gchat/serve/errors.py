"""Errors as OpenAI's clients read them: an HTTP status and `{"error": {…}}`.

Shapes: `ErrorResponse` of OpenAI's published OpenAPI document.
"""

import json
from collections.abc import Mapping
from typing import Any

from gaia.errors import GaiaError

_TYPES = {401: "invalid_request_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


class ApiError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: HTTP status.
        message: one line for people; it must hold no secret.
        param: field of the request that is wrong, if it is one.
        code: name of the error for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def raw(self) -> bytes:
        """The error as the body of an answer."""
        return json.dumps(self.body()).encode()


def refused(error: GaiaError, param: str | None = None) -> ApiError:
    """A request that cannot work, as this project's errors tell it."""
    return ApiError(400, printable(str(error)), param=param, code="invalid_value")


def busy(message: str, seconds: float) -> ApiError:
    """A request that may come again in some seconds."""
    after = str(max(1, round(seconds)))
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": after})


def leaving() -> ApiError:
    """The server is shutting down."""
    return ApiError(
        503, "the server is shutting down; ask again later", code="shutting_down",
        headers={"Retry-After": "10"},
    )  # fmt: skip


def printable(text: str, longest: int = 500) -> str:
    """A text on one line, without halves of characters: errors quote what clients sent."""
    whole = text.encode("utf-8", "replace").decode()
    return " ".join(whole.split())[:longest]

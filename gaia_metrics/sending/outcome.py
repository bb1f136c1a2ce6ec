"""Answers of a receiver, as the sender acts on them.

Source: "OTLP specification" (which answers may be tried again).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gaia_metrics.sending import wire


@dataclass(frozen=True)
class Outcome:
    """Result of a request.

    Attributes:
        kind: "ok", "retry" (not now), "denied" (token, certificate or address: all is kept until
            that is mended) or "rejected" (the receiver refuses these very bytes).
        detail: what the receiver or the network said.
        retry_after: seconds the receiver asked to wait, or 0.
        left_out: points or records of an accepted request that the receiver did not take. They
            must not be sent again of our own accord, and have not arrived.
    """

    kind: str
    detail: str = ""
    retry_after: float = 0.0
    left_out: int = 0


NO_ENDPOINT = Outcome("rejected", "no endpoint is set for this signal")


class Transport(Protocol):
    """Sends one request and waits for the answer. Used by one thread."""

    def send(self, signal: bytes, request: bytes) -> Outcome:
        """Send spooled bytes; never raises."""
        ...

    def close(self) -> None:
        """Drop the connection."""


def accepted(body: bytes) -> Outcome:
    """Read a success response, which may count rejected points."""
    count, message = wire.rejected(body)
    if count <= 0:
        return Outcome("ok")
    said = f"the receiver left out {count} points of a batch ({message or 'it does not say why'})"
    return Outcome("ok", said, left_out=count)

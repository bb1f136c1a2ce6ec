"""Duties of a message broker behind a queue (`broker_queue.py`)."""

from dataclasses import dataclass
from typing import Any, Protocol

BANDS = ("high", "middle", "low")


@dataclass(frozen=True)
class Message:
    """A message as it was received.

    Attributes:
        body: JSON object that was sent.
        handle: what the broker knows this delivery by.
        received: deliveries of this message so far, this one included.
    """

    body: dict[str, Any]
    handle: str
    received: int


class Transport(Protocol):
    """A broker's own calls. `band` is one of BANDS, or "dead" for its dead letter."""

    url: str
    retention_s: float
    """Age at which the broker drops a message, its longest."""

    def make(self, attempts: int) -> None:
        """Makes queues or topics that are not there, and sets how long they keep a message;
        messages move to "dead" by themselves after somewhat more than so many deliveries."""
        ...

    def send(self, band: str, bodies: list[dict[str, Any]], delay_s: float = 0.0) -> None:
        """Sends messages; when it returns, the broker has them."""
        ...

    def receive(
        self, band: str, n: int, seconds: float, *, thorough: bool = False
    ) -> list[Message]:
        """Takes up to n messages, hidden for so many seconds; [] where none is there, or, unless
        `thorough`, none is at hand."""
        ...

    def hide(self, band: str, handle: str, seconds: float) -> bool:
        """Hides a message for so many seconds from now; False where it is no longer ours."""
        ...

    def delete(self, band: str, handle: str) -> bool:
        """Ends a message; False where it is no longer ours."""
        ...

    def in_work(self) -> int:
        """Messages that are hidden just now, about."""
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...

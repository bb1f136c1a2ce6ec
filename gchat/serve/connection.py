"""Connections of uvicorn that end when their client falls silent or does not read.

uvicorn waits for ever for the first request of a connection, and for ever for a client that reads
no more: either would hold a connection, and the second an answer, until the client is gone.
"""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from gchat.serve.errors import ApiError


class Connection(H11Protocol):
    """A connection with limits of time."""

    head_s = 30.0
    """Seconds until a request's head must be there."""
    stalled_s = 60.0
    """Seconds that a client may leave a full buffer unread."""

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        super().connection_made(transport)
        if (raw := transport.get_extra_info("socket")) is not None:
            # A peer whose machine has died sends nothing: the kernel finds out.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._await_head()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()  # uvicorn's own timer of idle connections ends with the first byte
        super().data_received(data)

    def handle_events(self) -> None:  # noqa: D102
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop("_head_timer")

    def pause_writing(self) -> None:  # noqa: D102
        super().pause_writing()
        self._stall_timer = self._stall_timer or self.loop.call_later(
            self.stalled_s, self.transport.abort
        )

    def resume_writing(self) -> None:  # noqa: D102
        super().resume_writing()
        self._stop("_stall_timer")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop("_stall_timer")
        self._stop("_head_timer")
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in OpenAI's shape."""
        error = ApiError(400, "the request is no HTTP that this server understands")
        raw = error.raw()
        lines = (
            "HTTP/1.1 400 Bad Request",
            "content-type: application/json",
            f"content-length: {len(raw)}",
            "connection: close",
        )
        self.transport.write("\r\n".join((*lines, "", "")).encode() + raw)
        self.transport.close()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._no_head)

    def _no_head(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

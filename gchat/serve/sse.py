"""Server-sent events that end when the client goes away, also while there is nothing to send.

Starlette's own `StreamingResponse` notices a client that left at the next send; while a long prompt
is read nothing is sent. Here the connection is watched beside the stream.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gchat.serve.errors import ApiError

PING_S = 15.0
"""Silence after which a comment is sent: proxies close connections that say nothing."""
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would collect small events, and compress them, before it passes them on.
    "X-Accel-Buffering": "no",
}

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection: there is nobody to answer."""


def event(data: Any, name: str | None = None) -> bytes:
    """One event; JSON on one line, characters as they are."""
    head = f"event: {name}\n" if name else ""
    # Halves of characters, which another server may send, are none that can be sent on.
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


async def gone(receive: Receive) -> None:
    """Returns when the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGone: it did.
    """
    working = asyncio.ensure_future(work)
    if not await _first(working, request.receive):
        raise ClientGone
    return working.result()


class EventStream(Response):
    """Sends events as they come.

    Args:
        events: encoded; the iterator is closed when the client goes away. An ApiError that it
            raises becomes the last event.
        done: what is sent when all went well.
        close: called at the end, whatever it is; an iterator that never began cannot tidy up.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        done: bytes = DONE,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self._events, self._done, self._close = events, done, close
        self.status_code, self.background = 200, None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        try:
            await _first(asyncio.ensure_future(self._send(send)), receive)
        finally:
            self._close()
            if (closing := getattr(self._events, "aclose", None)) is not None:
                await closing()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        line = _Line(send)
        try:
            async for piece in self._events:
                await line.send(piece)
            last = self._done
        except ApiError as error:
            last = event(error.body())
        finally:
            await line.end()
        await send({"type": "http.response.body", "body": last, "more_body": False})


class _Line:
    """The way to a client; a comment goes out where nothing has gone for a while.

    One task looks after that for the whole stream: a timer for each event would be a quarter of
    what an event costs.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._one = send, asyncio.Lock()
        self._last = asyncio.get_running_loop().time()
        self._pinging = asyncio.ensure_future(self._ping())

    async def send(self, piece: bytes) -> None:
        async with self._one:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._last = asyncio.get_running_loop().time()

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._last
            if silent >= PING_S:
                await self.send(b": still working\n\n")
            else:
                await asyncio.sleep(PING_S - silent)

    async def end(self) -> None:
        await _cancelled(self._pinging)


async def _first(work: "asyncio.Future[Any]", receive: Receive) -> bool:
    """Waits for the work or the client's leaving; True where the work was done."""
    watching = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({work, watching}, return_when=asyncio.FIRST_COMPLETED)
        finished = work.done()
    finally:
        await _cancelled(watching)
        await _cancelled(work)
    if finished and not work.cancelled() and (error := work.exception()) is not None:
        raise error
    return finished


async def _cancelled(task: "asyncio.Future[Any]") -> None:
    """Cancels what is not done, and waits for its end."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})

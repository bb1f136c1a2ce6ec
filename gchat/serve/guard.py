"""The door: key, rate, size and time of each request, before anything else sees it.

Plain ASGI. Starlette's `BaseHTTPMiddleware` would hide that a client has gone away.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection
from inspect import isawaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gchat.serve.errors import ApiError, leaving
from gchat.serve.keys import NOBODY
from gchat.serve.service import HOLDER, Service

OPEN = ("/health",)
"""Paths that need no key: whoever watches a server must not hold one."""
FREE = ("/health", "/metrics", "/v1/models")
"""Paths that count against no rate."""
_LINGER_S, _LINGER_BYTES = 5.0, 64 << 20  # of a body that is too large and is thrown away
_log = logging.getLogger("gchat.serve")


class Guard:
    """Lets requests in, or answers them with an error.

    Args:
        app: that answers those let in.
        service: whose keys and rates count.
        paths: that are known; others are not written to the log as they came.
        max_bytes: of a body.
        body_s: seconds that a client has to send the whole body.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        paths: Collection[str],
        *,
        max_bytes: int,
        body_s: float,
    ) -> None:
        self._app, self._service, self._paths = app, service, frozenset(paths)
        self._max_bytes, self._body_s = max_bytes, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection's request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope)
            await self._app(scope, LimitedBody(receive, self._max_bytes, self._body_s), note)
        except ApiError as error:
            if status:
                raise
            await answer(error, note, receive if error.status == 413 else None)
        finally:
            self._write(scope, status, time.monotonic() - began)

    async def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        path, keys = scope["path"], self._service.keys
        scope[HOLDER] = NOBODY
        if keys.needed and path not in OPEN:
            kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            holder = keys.holder(key.strip()) if kind.lower() == "bearer" else None
            if isawaitable(holder):  # keys in a database
                holder = await holder
            if holder is None:
                raise ApiError(
                    401, "the API key is missing or wrong; send `Authorization: Bearer KEY`",
                    code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
            scope[HOLDER] = holder
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size[:20]) > self._max_bytes:
            raise too_large(self._max_bytes)
        if path not in FREE:
            if self._service.leaving:
                raise leaving()
            self._service.rates.begin(scope[HOLDER])

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        """One line in the log: nothing of what the client wrote, which may hold a key."""
        path = scope["path"] if scope["path"] in self._paths else "(other)"
        metrics = self._service.metrics
        metrics.requests.labels(path, str(status)).inc()
        metrics.seconds.labels(path).observe(seconds)
        if path not in OPEN:
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "(other)"
            _log.info("%s %s %s %.3fs %s", method, path, status, seconds, scope.get(HOLDER, "-"))


class LimitedBody:
    """Passes a body on while it is neither too large nor too slow."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._left, self._most = receive, most, most
        self._end = time.monotonic() + seconds
        self._whole = False

    async def __call__(self) -> Message:
        """Receives the next part (ASGI)."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0, self._end - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408, "the body did not come in time", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._left < 0:
                if not self._whole:
                    await _read_away(self._receive)
                raise too_large(self._most)
        return message


def too_large(most: int) -> ApiError:
    """The body has more bytes than are taken."""
    return ApiError(
        413, f"the body has more than {most:,} bytes", code="request_too_large",
        headers={"Connection": "close"},
    )  # fmt: skip


async def answer(error: ApiError, send: Send, unread: Receive | None = None) -> None:
    """Sends an error as the whole answer.

    With `unread`, the rest of the request is read and thrown away for a while.
    """
    raw = error.raw()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": raw, "more_body": unread is not None})
    if unread is not None:
        await _read_away(unread)
        await send({"type": "http.response.body", "body": b""})


async def _read_away(unread: Receive) -> None:
    """Reads the rest of a request for a while.

    A connection that is closed with bytes unread is reset, and the client that still sends loses
    the answer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            left = _LINGER_BYTES
            while left > 0:
                message = await unread()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break

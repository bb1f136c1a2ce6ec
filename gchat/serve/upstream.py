"""Another server behind this one: its address, its key, and its turn among those who ask.

The key goes to this address alone (redirects are not followed) and is taken out of every message.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gchat import endpoint_wire as wire
from gchat.serve.errors import ApiError, leaving, printable
from gchat.serve.fair_queue import FairQueue

if TYPE_CHECKING:
    import httpx2

_CONNECT_S = 10.0
_IDLE_S = 2.0
"""Idle connections are closed before the upstream closes them: most wait for 5 seconds, and what is
sent at that moment is lost."""
_HIDDEN = "(hidden)"
_OUR_FAULT = (401, 402, 403, 407)
"""Statuses that tell of this server's key, not of the client's."""


@dataclass(eq=False)
class Address:
    """A server that speaks OpenAI's protocol.

    Attributes:
        url: base address, which ends in /v1 as a rule.
        key: for it; empty where it needs none.
        queue: whose turn it is.
        limit_s: longest wait for a piece of an answer.
    """

    url: str
    key: str
    queue: FairQueue
    limit_s: float
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    _http: Any = None

    @property
    def root(self) -> str:
        """The address without /v1: llama.cpp's own paths lie there."""
        return self.url.removesuffix("/v1")

    def http(self) -> "httpx2.AsyncClient":
        """The client, made on the event loop that uses it."""
        if self._http is None:
            import httpx2

            self._http = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
                timeout=httpx2.Timeout(self.limit_s, connect=_CONNECT_S, pool=None),
                limits=httpx2.Limits(max_connections=None, keepalive_expiry=_IDLE_S),
                follow_redirects=False,
            )
        return self._http

    def line_up(self, holder: str, count: int) -> list["Turn"]:
        """Places for all answers of a request among those that are open at once, or none.

        Raises:
            ApiError: too many wait already.
        """
        turns = [Turn(self.queue, holder) for _ in range(count)]
        self.queue.add(holder, [*turns])
        return turns

    @asynccontextmanager
    async def post(
        self, url: str, body: dict[str, Any], taken: Callable[[bool], object] = bool
    ) -> AsyncIterator["httpx2.Response"]:
        """Sends a body, and gives the answer as it comes; leaving the context closes it.

        Args:
            url: of the path.
            body: JSON.
            taken: is told True when the upstream has the whole request, which it may have to be
                paid for from then on, and False when it refuses it.

        Raises:
            ApiError: the upstream cannot be reached, refuses, or breaks off.
        """
        import httpx2

        async def trace(step: str, _: dict[str, Any]) -> None:
            if step.endswith(".send_request_body.complete"):
                taken(True)

        try:
            sent = self.http().stream("POST", url, json=body, extensions={"trace": trace})
            async with sent as response:
                if not response.is_success:
                    taken(False)
                    raise self._refused(response.status_code, await response.aread(), response)
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._broken(error) from None

    async def json(
        self, url: str, body: dict[str, Any], taken: Callable[[bool], object] = bool
    ) -> dict[str, Any]:
        """Sends a body, and waits for the whole answer; arguments as those of `post`.

        Raises:
            ApiError: it is no JSON object, or none came.
        """
        async with self.post(url, body, taken) as response:
            raw = await response.aread()
        return self.parsed(raw)

    def parsed(self, raw: bytes | str) -> dict[str, Any]:
        """An object that the upstream sent; ApiError where it is none."""
        try:
            data = json.loads(raw)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise ApiError(502, "the upstream's answer is not JSON", code="upstream_error")
        return data

    def hide(self, text: str) -> str:
        """A text on one line without the key."""
        return printable(text.replace(self.key, _HIDDEN) if self.key else text)

    def _refused(self, status: int, raw: bytes, response: "httpx2.Response") -> ApiError:
        message, code = wire.problem(raw)
        text = self.hide(message or response.reason_phrase)
        if status in _OUR_FAULT or not 400 <= status < 600:
            return ApiError(502, f"the upstream answered {status}", code="upstream_error")
        after = response.headers.get("Retry-After")
        headers = {"Retry-After": after} if after and after.isdigit() else {}
        kind = code if status < 500 and code else "upstream_error"
        return ApiError(status, f"the upstream: {text}", code=kind, headers=headers)

    def _broken(self, error: Exception) -> ApiError:
        import httpx2

        if isinstance(error, httpx2.TimeoutException):
            return ApiError(504, "the upstream took too long", code="upstream_timeout")
        if isinstance(error, httpx2.ConnectError):
            return ApiError(502, "the upstream cannot be reached", code="upstream_error")
        name = type(error).__name__
        return ApiError(502, f"the upstream broke off ({name}); ask again", code="upstream_error")

    async def close(self) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None


class Turn:
    """One answer's place at an upstream; a context manager that waits for it and gives it back."""

    samples = 1

    def __init__(self, queue: FairQueue, holder: str) -> None:
        self._queue, self._holder = queue, holder
        self._began = asyncio.Event()
        self._at = 0.0
        self._over = False

    def begin(self) -> None:
        """Is called by the queue."""
        self._at = time.monotonic()
        self._began.set()

    def end(self) -> None:
        """Gives the place back, or leaves the line; a second call does nothing."""
        if self._over:
            return
        self._over = True
        if self._began.is_set():
            self._queue.ended(1, time.monotonic() - self._at)
        else:
            self._queue.leave(self._holder, self)

    async def __aenter__(self) -> None:
        try:
            await self._began.wait()
        except BaseException:
            self.end()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.end()


@dataclass(eq=False)
class Upstream:
    """One model of another server, whose bodies are passed on as they are.

    Attributes:
        name: that requests call it by here.
        model: that the other server calls it by.
        known: fields that it was seen to heed or to ignore, by path and name.
        max_tokens: limit of an answer; 0 where the upstream decides.
    """

    name: str
    model: str
    address: Address
    max_tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    known: dict[tuple[str, str], bool] = field(default_factory=dict)
    seq_len: int | None = None

    @property
    def queue(self) -> FairQueue:
        """Those who wait."""
        return self.address.queue

    def end(self) -> None:
        """Ends what is being answered: the time to finish it is over."""
        self.address.leaving.set()

    async def while_open(self, work: Any) -> Any:
        """Awaits something unless the server must end meanwhile.

        Raises:
            ApiError: it must.
        """
        working = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self.address.leaving.wait())
        try:
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise leaving()
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.wait({working, ending})

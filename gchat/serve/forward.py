"""Requests passed on to an upstream, and its answers passed back, with this server's limits."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from gchat.serve import probe
from gchat.serve.errors import ApiError, leaving
from gchat.serve.service import Service, holder_of
from gchat.serve.sse import EventStream, event, while_there
from gchat.serve.upstream import Upstream
from gchat.serve.usage import Usage

_LIMITS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
"""Names of an answer's limit by path; the first is the one that is added."""
PATHS = tuple(_LIMITS)

_COUNTS = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
"""Counts of tokens by chats' names and by those of responses."""
_BYTES_PER_TOKEN = 4

T = TypeVar("T")


async def forward(
    service: Service, upstream: Upstream, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Answers with what the upstream answers.

    Raises:
        ApiError: the upstream has no such path, the server is busy, or a field is ignored there.
    """
    if http.url.path not in PATHS:
        raise ApiError(404, f"{upstream.name!r} is an upstream's model, which has no such path")
    if service.leaving:
        raise leaving()
    path = http.url.path.removeprefix("/v1/")
    if not isinstance(data.get("stream_options") or {}, dict):
        raise ApiError(400, "stream_options is no object", param="stream_options",
                       code="invalid_value")  # fmt: skip
    body = _limited(upstream, http.url.path, data) | {"model": upstream.model}
    exchange = Exchange(service, upstream, holder_of(http), path, body)
    if not body.get("stream"):
        return _Passed(await while_there(http, exchange.whole()))
    events = exchange.events()
    # Its first event, so that a refusal becomes an HTTP status.
    first = await while_there(http, anext(events, None))  # type: ignore[arg-type]
    return EventStream(_Begun(first, events), b"")


class _Passed(JSONResponse):
    """JSON of an upstream; halves of characters in it are none that can be sent on."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


class _Begun:
    """Events whose first one is there already; closed as a whole, also before anybody reads it."""

    def __init__(self, first: bytes | None, events: AsyncIterator[bytes]) -> None:
        self._first, self._events = first, events

    def __aiter__(self) -> "_Begun":
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        return await anext(self._events) if first is None else first

    async def aclose(self) -> None:
        await self._events.aclose()  # type: ignore[attr-defined]


def _limited(upstream: Upstream, path: str, data: dict[str, Any]) -> dict[str, Any]:
    """The body with an answer of limited length, where there is a limit."""
    names, most = _LIMITS[path], upstream.max_tokens
    fewest = int(names != ("max_tokens",))  # none: a completion may only score its prompt
    for name in names:
        value = data.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ApiError(400, f"{name} is no whole number", param=name, code="invalid_value")
        if value is not None and most and not fewest <= value <= most:
            raise ApiError(400, f"{name} is {value}; use {fewest} to {most}",
                           param=name, code="invalid_value")  # fmt: skip
    if most and data.get("n_predict") is not None:  # llama.cpp's name, which goes before the others
        raise ApiError(400, f"n_predict is given; use {names[0]}, at most {most}",
                       param="n_predict", code="invalid_value")  # fmt: skip
    if most and all(data.get(name) is None for name in names):
        return data | {names[0]: most}
    return data


class Exchange:
    """One request to an upstream."""

    def __init__(
        self, service: Service, upstream: Upstream, holder: str, path: str, body: dict[str, Any]
    ) -> None:
        self._service, self._upstream, self._holder = service, upstream, holder
        self._path, self._body = path, body
        self._url = f"{upstream.address.url}/{path}"
        self._usage = Usage()
        self._taken = False  # by the upstream, which may have to be paid for it
        self._pieces = 0  # of an answer's text, a token each at least
        options = body.get("stream_options")
        self._wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))

    async def whole(self) -> dict[str, Any]:
        """The whole answer."""
        address = self._upstream.address

        async def work() -> dict[str, Any]:
            (turn,) = address.line_up(self._holder, 1)
            async with turn:
                await probe.check(self._upstream, self._path, self._body)
                return await address.json(self._url, self._body, self._note_taken)

        try:
            async with asyncio.timeout(self._service.limit_s):
                answer = await self._upstream.while_open(work())
            self._check_error(answer)
            self._count(answer)
        except TimeoutError:
            raise _too_slow() from None
        finally:
            self._end()
        return self._renamed(answer)

    def _note_taken(self, taken: bool) -> None:
        self._taken = taken

    async def events(self) -> AsyncIterator[bytes]:
        """Events of the answer as they come; a stream that breaks off ends with an error."""
        address, body = self._upstream.address, self._body
        if self._path != "responses":  # the tokens count against a rate, whoever asks for them
            options = body.get("stream_options") or {}
            body = body | {"stream_options": {**options, "include_usage": True}}
        deadline = asyncio.get_running_loop().time() + self._service.limit_s
        (turn,) = address.line_up(self._holder, 1)
        try:
            async with turn:
                await probe.check(self._upstream, self._path, self._body)
                async with address.post(self._url, body, self._note_taken) as response:
                    pieces = lines(response.aiter_bytes())
                    while (piece := await self._by(deadline, anext(pieces, None))) is not None:
                        if (passed := self._passed(*piece)) is not None:
                            yield passed
                        if self._ended(piece[1]):
                            return
            raise ApiError(
                502, "the upstream's stream broke off before its end; ask again",
                code="upstream_error",
            )  # fmt: skip
        finally:
            self._end()

    async def _by(self, deadline: float, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._upstream.while_open(work)
        except TimeoutError:
            raise _too_slow() from None

    def _ended(self, data: str) -> bool:
        if data == "[DONE]" or self._path != "responses":
            return data == "[DONE]"
        ends = ("response.completed", "response.incomplete", "response.failed", "error")
        return json.loads(data).get("type") in ends

    def _passed(self, name: str | None, data: str) -> bytes | None:
        """An event as it is passed on; None where only this server asked for it."""
        if data == "[DONE]":
            return b"data: [DONE]\n\n"
        chunk = self._upstream.address.parsed(data)
        self._check_error(chunk)
        self._count(chunk)
        try:
            self._pieces += _texts(chunk)
        except (AttributeError, TypeError):
            text = "the upstream's answer is not OpenAI's"
            raise ApiError(502, text, code="upstream_error") from None
        if not self._wants_usage and self._path != "responses":
            if not chunk.get("choices"):
                return None
            chunk.pop("usage", None)
        return event(self._renamed(chunk), name)

    def _check_error(self, answer: dict[str, Any]) -> None:
        """Raises ApiError for an error that came with status 200; it may repeat the key."""
        if answer.get("error") and answer.get("object") != "response":  # which has such a field
            hidden = self._upstream.address.hide(json.dumps(answer["error"]))
            raise ApiError(502, f"the upstream broke off: {hidden}", code="upstream_error")

    def _renamed(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer under the name that the model has here."""
        inner = answer.get("response")
        if isinstance(inner, dict):
            return {**answer, "response": {**inner, "model": self._upstream.name}}
        return {**answer, "model": self._upstream.name} if "model" in answer else answer

    def _count(self, answer: dict[str, Any]) -> None:
        inner = answer.get("response")
        usage = (inner if isinstance(inner, dict) else answer).get("usage")
        if isinstance(usage, dict):
            for ours, theirs in _COUNTS.items():
                names = (ours, theirs)
                value = next((usage[n] for n in names if isinstance(usage.get(n), int)), 0)
                setattr(self._usage, ours, max(value, getattr(self._usage, ours)))

    def _end(self) -> None:
        """Counts what was used; about that, where the answer ended before the upstream told.

        What it refused, or never got, counts nothing.
        """
        used, self._usage = self._usage, Usage()
        used.completion_tokens = max(used.completion_tokens, self._pieces)
        if self._taken and not used.prompt_tokens:
            used.prompt_tokens = len(json.dumps(self._body)) // _BYTES_PER_TOKEN
        self._pieces, self._taken = 0, False
        tokens = self._service.metrics.tokens
        tokens.labels(self._upstream.name, "prompt").inc(used.prompt_tokens)
        tokens.labels(self._upstream.name, "completion").inc(used.completion_tokens)
        self._service.rates.used(self._holder, used.prompt_tokens + used.completion_tokens)


def _texts(chunk: dict[str, Any]) -> int:
    """Number of pieces of text, or of calls, in an event."""
    if str(chunk.get("type")).endswith(".delta"):
        return 1
    count = 0
    for one in chunk.get("choices") or ():
        delta = one.get("delta") or {}
        count += bool(one.get("text") or any(delta[name] for name in delta if name != "role"))
    return count


def _too_slow() -> ApiError:
    return ApiError(504, "the answer took too long and was ended", code="timeout")


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str | None, str]]:
    """(name, data) of server-sent events; lines end in LF or CR LF and nothing else."""
    buffer, name = b"", None
    data: list[str] = []
    async for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
            elif line.startswith(b"event:"):
                name = line[6:].strip().decode("utf-8", "replace")
            elif not line and data:
                yield name, "\n".join(data)
                name, data = None, []

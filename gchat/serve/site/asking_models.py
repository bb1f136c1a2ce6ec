"""A question to any model of the server, and its answer as it comes."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from gaia.errors import GaiaError
from gchat.conversation import Message
from gchat.engine.requests import Request
from gchat.serve.asking import said
from gchat.serve.bodies import checked
from gchat.serve.chat import ChatBody, prepare
from gchat.serve.errors import ApiError
from gchat.serve.forward import Exchange, lines
from gchat.serve.service import Service
from gchat.serve.site.storable import storable
from gchat.serve.upstream import Upstream


@dataclass
class Told:
    """Facts of an answer that has ended.

    Attributes:
        tokens: of the answer.
        finish: "stop", or "length" where it was cut.
    """

    tokens: int = 0
    finish: str = "stop"
    first_s: float | None = field(default=None)


async def answer(
    service: Service,
    model: Any,
    holder: str,
    messages: Sequence[Message],
    sampling: dict[str, Any],
    told: Told,
) -> AsyncIterator[str]:
    """Yields the answer's text in pieces; closing it ends the answer.

    Args:
        service: whose model it is.
        model: that is asked.
        holder: whose turn it takes.
        messages: of the conversation.
        sampling: fields of a request as OpenAI and vLLM name them.
        told: is filled in on the way.

    Raises:
        ApiError: there is no answer, or it broke off.
    """
    body: dict[str, Any] = {
        "model": model.name,
        "messages": [{"role": one.role, "content": one.content} for one in messages],
        **sampling,
    }
    if isinstance(model, Upstream):
        pieces = _upstreams(service, model, holder, body, told)
    else:
        pieces = _own(service, model, holder, body, told)
    try:
        async for text in pieces:
            if text:
                yield storable(text)
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def _own(
    service: Service, model: Any, holder: str, body: dict[str, Any], told: Told
) -> AsyncIterator[str]:
    prepared = await run_in_threadpool(lambda: prepare(model, checked(ChatBody, body)))
    request: Request = prepared.request
    try:
        asked = service.ask_for(holder, model, [request], calculator=True)
    except GaiaError as error:
        raise ApiError(400, str(error)) from None
    news = asked.news()
    try:
        async for _, one in news:
            told.tokens += len(one.ids)
            if one.finish is not None:
                told.finish = one.finish
            yield said(one)
    finally:
        await news.aclose()  # type: ignore[attr-defined]
        asked.cancel()


async def _upstreams(
    service: Service, model: Upstream, holder: str, body: dict[str, Any], told: Told
) -> AsyncIterator[str]:
    body |= {"model": model.model, "stream": True, "stream_options": {"include_usage": True}}
    if model.max_tokens:
        body["max_tokens"] = min(body.get("max_tokens") or model.max_tokens, model.max_tokens)
    events = Exchange(service, model, holder, "chat/completions", body).events()
    try:
        async for _, data in lines(events):
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if isinstance(usage := chunk.get("usage"), dict):
                told.tokens = usage.get("completion_tokens") or told.tokens
            for choice in chunk.get("choices") or ():
                told.finish = choice.get("finish_reason") or told.finish
                text = (choice.get("delta") or {}).get("content")
                if isinstance(text, str):
                    told.tokens += bool(text)
                    yield text
    finally:
        await events.aclose()  # type: ignore[attr-defined]

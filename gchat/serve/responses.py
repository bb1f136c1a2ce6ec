"""`/v1/responses` of a run: the basics of OpenAI's newer protocol, without a store.

A response is one answer: messages and calls of functions in, items of text and calls out. Streams
have the events that the official client reads.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from gchat.serve.asking import Asked, said
from gchat.serve.bodies import read
from gchat.serve.chat import Prepared, prepare
from gchat.serve.errors import ApiError
from gchat.serve.functions import Call, CallReader, Offer
from gchat.serve.local_model import LocalModel
from gchat.serve.responses_body import ResponsesBody
from gchat.serve.service import Service
from gchat.serve.sse import EventStream, event, while_there

_NAMES = {
    r"max_completion_tokens": "max_output_tokens",
    r"response_format": "text.format",
    # Numbers of messages are not those of items.
    r"messages(\.\d+|\[\d+\])*": "input",
}
"""Fields of a chat as a pattern, and what they are called here."""


async def responses(
    service: Service, model: LocalModel, http: HttpRequest, data: dict[str, Any]
) -> Response:
    """Gives a response."""
    body = await read(ResponsesBody, data)
    prepared = await run_in_threadpool(_prepared, model, body)
    asked = service.ask(http, model, [prepared.request], calculator=not prepared.offer.functions)
    answer = _Answer(model, body, prepared.offer, asked)
    if body.stream:
        return EventStream(answer.stream(), b"", close=asked.cancel)
    try:
        return JSONResponse(await while_there(http, answer.whole()))
    finally:
        asked.cancel()


def _prepared(model: LocalModel, body: ResponsesBody) -> Prepared:
    """The question as a chat, whose errors name what was sent here."""
    try:
        return prepare(model, body.chat())
    except ApiError as error:
        for pattern, ours in _NAMES.items():
            if error.param is not None and re.match(pattern, error.param):
                error.param = ours
                error.message = re.sub(pattern, ours, error.message)
        raise


class _Item:
    """One item of the output: a message, or a call."""

    def __init__(self, index: int, call: Call | None = None) -> None:
        self.index, self.call, self.text = index, call, ""
        self.id = ("fc_" if call else "msg_") + secrets.token_hex(12)

    def body(self, status: str) -> dict[str, Any]:
        if self.call is not None:
            return {
                "id": self.id, "type": "function_call", "call_id": self.call.id,
                "name": self.call.name, "arguments": self.call.arguments, "status": status,
            }  # fmt: skip
        content = [self.part()] if status != "in_progress" else []
        return {
            "id": self.id, "type": "message", "role": "assistant", "status": status,
            "content": content,
        }  # fmt: skip

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


class _Answer:
    """The response to one request."""

    def __init__(
        self, model: LocalModel, body: ResponsesBody, functions: Offer, asked: Asked
    ) -> None:
        self._model, self._body, self._asked = model, body, asked
        self._reader = CallReader(functions)
        self._items: list[_Item] = []
        self._id, self._created = f"resp_{secrets.token_hex(12)}", int(time.time())
        self._number = -1

    async def whole(self) -> dict[str, Any]:
        """The response, when it is there."""
        finish = None
        async for _, news in self._asked.news():
            for piece in self._read(news):
                self._take(piece)
            finish = news.finish or finish
        return self._response(finish)

    def _read(self, news: Any) -> list[str | Call]:
        return self._reader.add(said(news)) + (
            self._reader.end() if news.finish is not None else []
        )

    def _take(self, piece: str | Call) -> _Item:
        """Puts a piece into the item that it belongs to."""
        if isinstance(piece, Call):
            self._items.append(_Item(len(self._items), piece))
        elif not self._items or self._items[-1].call is not None:
            self._items.append(_Item(len(self._items)))
        item = self._items[-1]
        if isinstance(piece, str):
            item.text += piece
        return item

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of the response as it grows."""
        yield self._event("response.created", response=self._response(None))
        yield self._event("response.in_progress", response=self._response(None))
        finish, current = None, None
        try:
            async for _, news in self._asked.news():
                for piece in self._read(news):
                    item = self._take(piece)
                    if item is not current:
                        for one in self._closed(current):
                            yield one
                        for one in self._opened(item):
                            yield one
                        current = item
                    for one in self._grown(item, piece):
                        yield one
                finish = news.finish or finish
        except ApiError as error:
            failed = self._response(None) | {
                "status": "failed", "error": {"code": "server_error", "message": error.message}
            }  # fmt: skip
            yield self._event("response.failed", response=failed)
            return
        for one in self._closed(current):
            yield one
        kind = "response.incomplete" if finish == "length" else "response.completed"
        yield self._event(kind, response=self._response(finish))

    def _opened(self, item: _Item) -> Iterator[bytes]:
        body = item.body("in_progress") | ({"arguments": ""} if item.call else {})
        yield self._event("response.output_item.added", output_index=item.index, item=body)
        if item.call is None:
            part = item.part() | {"text": ""}
            yield self._event("response.content_part.added", **self._place(item), part=part)

    def _grown(self, item: _Item, piece: str | Call) -> Iterator[bytes]:
        if isinstance(piece, Call):
            place = {"item_id": item.id, "output_index": item.index}
            name = "response.function_call_arguments"
            yield self._event(f"{name}.delta", **place, delta=piece.arguments)
            yield self._event(f"{name}.done", **place, name=piece.name, arguments=piece.arguments)
        else:
            yield self._event(
                "response.output_text.delta", **self._place(item), delta=piece, logprobs=[]
            )

    def _closed(self, item: _Item | None) -> Iterator[bytes]:
        if item is None:
            return
        if item.call is None:
            place = self._place(item)
            yield self._event("response.output_text.done", **place, text=item.text, logprobs=[])
            yield self._event("response.content_part.done", **place, part=item.part())
        body = item.body("completed")
        yield self._event("response.output_item.done", output_index=item.index, item=body)

    def _place(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.index, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _response(self, finish: str | None) -> dict[str, Any]:
        body, cut = self._body, finish == "length"
        status = "in_progress" if finish is None else "incomplete" if cut else "completed"
        choice = body.tool_choice or "auto"
        output = [item.body("completed") for item in self._items] if finish else []
        form = body.text.format if body.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._model.name,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True)
                if form
                else {"type": "text"}
            },
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [_tool(tool) for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._asked.usage.responses() if finish else None,
            "user": body.user,
            "metadata": body.metadata or {},
        }


def _tool(tool: Any) -> dict[str, Any]:
    made = tool.model_dump()
    return made | {"strict": bool(tool.strict), "parameters": tool.parameters or {}}

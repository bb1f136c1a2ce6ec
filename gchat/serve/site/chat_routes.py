"""Chats: a question in, its answer as it is written; stop it, or follow it again."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import Field, model_validator
from starlette.responses import Response

from gchat.conversation import Message
from gchat.serve.bodies import Strict, listed
from gchat.serve.errors import leaving
from gchat.serve.site import asking_models, conversations, messages, transfer
from gchat.serve.site.answers import Answer, encoded
from gchat.serve.site.conversation_routes import defaults
from gchat.serve.site.faults import Fault
from gchat.serve.site.quotas import holder_of
from gchat.serve.site.routes import Call, Routes
from gchat.serve.site.search import SearchError
from gchat.serve.site.site import Site
from gchat.serve.sse import EventStream

ROUTES = Routes()
Row = dict[str, Any]


class ChatTurn(Strict):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Strict):
    """A question: the next message of a conversation, an edit, or a wish for another answer."""

    conversationId: str | None = Field(None, max_length=32)
    content: str | None = None
    messages: Annotated[list[ChatTurn], listed(2048, fewest=1)] | None = None
    parent: str | None = Field(None, max_length=32)
    regenerate: str | None = Field(None, max_length=32)
    model: str | None = Field(None, max_length=200)
    search: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> "Chat":
        given = [self.content is not None, self.messages is not None, self.regenerate is not None]
        if sum(given) != 1:
            raise ValueError("give one of content, messages and regenerate")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last of messages is not the user's")
        if self.content is not None and not self.content.strip():
            raise ValueError("content is empty")
        return self


class Stop(Strict):
    """Names an answer."""

    message: str = Field(max_length=32)


@ROUTES.add("GET", "/api/models")
async def _models(call: Call) -> dict[str, Any]:
    """The models, the first of which answers where none is chosen."""
    site = call.site
    items = [
        {"id": name, "context": site.context_of(model), "default": i == 0}
        for i, (name, model) in enumerate(site.service.models.items())
    ]
    return {"items": items}


@ROUTES.add("POST", "/api/chat", body=Chat)
async def _chat(call: Call) -> Response:
    """Asks, and streams the answer as server-sent events: start, delta, sources, end or error."""
    site, user, body = call.site, call.user, call.body
    if site.service.leaving:
        raise leaving()
    if body.search and site.find is None:
        raise Fault(400, "search is switched off here", "search")
    with site.answers.place(user.id):
        await site.quotas.know(user)
        site.quotas.begin(holder_of(user))
        if body.model is not None:
            site.model(body.model)
        await _check_fits(call)
        conversation_id, asked, answer_id = await site.database.write(_begin, call)
        one = site.answers.begin(
            user.id, conversation_id, answer_id, lambda answer: _write(site, answer, body.search)
        )
    rows = await site.database.read(messages.tree, conversation_id)
    branch = {row["id"]: row for row in await site.branch_json(rows, answer_id)}
    start = {
        "conversationId": conversation_id,
        "message": branch[answer_id] | {"content": "", "n": 0},
        "userMessage": branch[asked] if body.regenerate is None else None,
    }
    return EventStream(_events(one, start), b"")


async def _events(one: Answer, start: dict[str, Any]) -> AsyncIterator[bytes]:
    yield encoded(0, "start", start)
    async with aclosing(one.follow(0)) as events:  # type: ignore[type-var]
        async for event in events:
            yield event


async def _check_fits(call: Call) -> None:
    """Raises Fault where the message alone is longer than the model reads: nothing is kept then."""
    site, body = call.site, call.body
    name = body.model
    if body.conversationId is not None:
        there = await site.database.read(conversations.one, call.user.id, body.conversationId)
        name = name or there["model"]
    content = body.content or (body.messages[-1].content if body.messages else "")
    row = {"model": name if name in site.service.models else None, "system": "", "sampling": {}}
    if body.regenerate is None:
        await site.fitted(row, [{"id": "", "role": "user", "content": content}])


def _begin(c: sa.Connection, call: Call) -> tuple[str, str, str]:
    """(conversation, user's message, answer), added in one step."""
    body, user_id = call.body, call.user.id
    if body.regenerate is not None:
        conversation_id, asked = messages.question_of(c, user_id, body.regenerate)
        if body.conversationId not in (None, conversation_id):
            raise Fault(404, "there is no such message in this conversation", "regenerate")
    else:
        turns = body.messages or [ChatTurn(role="user", content=body.content)]
        conversation_id, parent = _place(c, call, turns)
        asked = messages.ask(c, user_id, conversation_id, turns[-1].content, parent)
    there = conversations.one(c, user_id, conversation_id)
    name = body.model or there["model"]
    model = call.site.model(name)
    answer = messages.begin_answer(c, user_id, conversation_id, asked, model.name)
    changed = {} if body.model is None else {"model": body.model}
    if not there["title"] and body.regenerate is None:
        changed["title"] = transfer.title_of(turns[-1].content)
    if changed:
        conversations.change(c, user_id, conversation_id, **changed)
    return conversation_id, asked, answer


def _place(c: sa.Connection, call: Call, turns: list[ChatTurn]) -> tuple[str, str | None]:
    """(conversation, message above) of a new message; the conversation may be new too."""
    body, user_id = call.body, call.user.id
    if body.conversationId is not None:
        there = conversations.one(c, user_id, body.conversationId)
        return there["id"], body.parent if "parent" in body.model_fields_set else there["leaf"]
    if body.parent is not None:
        raise Fault(400, "parent is given without conversationId", "parent")
    system = "\n\n".join(one.content for one in turns if one.role == "system")
    made = conversations.add(c, user_id, **defaults(call, system or None, None, body.model))
    earlier = [one for one in turns[:-1] if one.role != "system"]
    parent = None
    if earlier:
        given = [transfer.ImportedMessage(role=one.role, content=one.content) for one in earlier]
        parent = list(transfer.add_turns(c, user_id, made, given).values())[-1]
    return made, parent


async def _write(site: Site, one: Answer, search: bool) -> AsyncIterator[str]:
    """The pieces of an answer."""

    def read(c: sa.Connection) -> tuple[Row, list[Row]]:
        there = conversations.one(c, one.user_id, one.conversation_id)
        branch = messages.path(messages.tree(c, one.conversation_id), one.message_id)
        return there, branch

    there, branch = await site.database.read(read)
    rows, quoted = branch[:-1], ""
    if search and site.find is not None:
        try:
            sources = await site.find(rows[-1]["content"])
        except SearchError as error:
            raise Fault(502, f"the search failed: {error}", "search") from None
        one.sources = site.list_sources(sources)
        one.show("sources", one.sources)
        limit = site.context_of(site.model(branch[-1]["model"])) or 1 << 16
        # Half of what the model reads, at three characters a token, is for all pages together.
        quoted = site.quote(sources, max(100, min(1500, limit * 3 // 2 // max(1, len(sources)))))
    if quoted:
        rows = [*rows[:-1], rows[-1] | {"content": f"{quoted}\n\n{rows[-1]['content']}"}]
    model = site.model(branch[-1]["model"])
    fitted = await site.fitted({**there, "model": model.name}, rows)
    sampling = dict(there["sampling"])
    if fitted.answer and sampling.get("max_tokens"):
        sampling["max_tokens"] = min(sampling["max_tokens"], fitted.answer)
    prompt: list[Message] = fitted.messages
    pieces = asking_models.answer(
        site.service, model, f"user:{one.user_id}", prompt, sampling, one.told
    )
    began = time.monotonic()
    async with aclosing(pieces) as opened:  # type: ignore[type-var]
        async for text in opened:
            if one.told.first_s is None:
                one.told.first_s = time.monotonic() - began
                site.recent.append(one.told.first_s)
            yield text


@ROUTES.add("GET", "/api/stream/{message_id}")
async def _stream(call: Call) -> Response:
    """Follows an answer: events after `Last-Event-ID`, or all so far at once, then the next."""
    message_id = call.param("message_id")
    one = call.site.answers.of(call.user.id, message_id)
    if one is not None:
        given = call.request.headers.get("last-event-id", "")
        after = int(given) if given.isascii() and given.isdigit() and len(given) < 10 else None
        return EventStream(one.follow(after), b"")
    ended = await call.site.ended_json(call.user.id, message_id)

    async def events() -> AsyncIterator[bytes]:
        yield encoded(0, "end", ended)

    return EventStream(events(), b"")


@ROUTES.add("POST", "/api/stop", body=Stop)
async def _stop(call: Call) -> dict[str, Any]:
    """Stops an answer; what was written of it stays."""
    wanted = call.body.message
    await call.site.database.read(messages.owned, call.user.id, wanted)
    stopped = await call.site.answers.stop(
        lambda one: one.message_id == wanted and one.user_id == call.user.id
    )
    return {"stopped": bool(stopped)}

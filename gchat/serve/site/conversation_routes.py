"""Conversations: listed, searched, changed, shared, exported, imported."""

from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field
from starlette.responses import JSONResponse, Response

from gchat.serve.bodies import Strict
from gchat.serve.site import conversations, messages, transfer
from gchat.serve.site.conversations import LONGEST_TITLE
from gchat.serve.site.faults import Fault
from gchat.serve.site.routes import Call, Routes
from gchat.serve.site.sampling import Sampling
from gchat.serve.site.shapes import conversation_json

ROUTES = Routes()
Row = dict[str, Any]


class NewConversation(Strict):
    """A conversation to be."""

    title: str = Field("", max_length=LONGEST_TITLE)
    system: str | None = Field(None, max_length=100_000)
    sampling: Sampling | None = None
    model: str | None = Field(None, max_length=200)


class Changes(Strict):
    """Fields of a conversation; those not named stay."""

    title: str | None = Field(None, max_length=LONGEST_TITLE)
    pinned: bool | None = None
    system: str | None = Field(None, max_length=100_000)
    sampling: Sampling | None = None
    model: str | None = Field(None, max_length=200)
    leaf: str | None = Field(None, max_length=32)


class Rating(Strict):
    """A judgement of an answer."""

    value: Literal[1, -1, 0]


@ROUTES.add("GET", "/api/conversations")
async def _listed(call: Call) -> dict[str, Any]:
    """Conversations of the user; `search` finds words in titles and messages."""
    return await call.site.database.read(
        conversations.listed, call.user.id, call.query("search")[:1000],
        call.query("before")[:500], call.number("limit", 50, 200),
    )  # fmt: skip


@ROUTES.add("POST", "/api/conversations", body=NewConversation)
async def _new(call: Call) -> dict[str, Any]:
    """Makes an empty conversation."""
    body = call.body

    def add(c: sa.Connection) -> Row:
        made = conversations.add(
            c,
            call.user.id,
            title=body.title,
            **defaults(call, body.system, body.sampling, body.model),
        )
        return conversations.one(c, call.user.id, made)

    return conversation_json(await call.site.database.write(add)) | {"messages": []}


def defaults(
    call: Call, system: str | None, sampling: Sampling | None, model: str | None
) -> dict[str, Any]:
    """Fields of a new conversation, the user's settings where nothing is said."""
    settings = call.user.settings or {}
    wanted = model or settings.get("default_model")
    if model is not None:
        call.site.model(model)
    elif wanted not in call.site.service.models:
        wanted = None
    drawn = settings.get("sampling") or {}
    if sampling is not None:
        drawn = sampling.model_dump(exclude_none=True)
    return {
        "system": settings.get("system") or "" if system is None else system,
        "sampling": {name: value for name, value in drawn.items() if value is not None},
        "model": wanted,
    }


def _read(c: sa.Connection, user_id: str, conversation_id: str) -> tuple[Row, dict[str, Row]]:
    there = conversations.one(c, user_id, conversation_id)
    return there, messages.tree(c, conversation_id)


async def whole_json(call: Call, there: Row, rows: dict[str, Row]) -> dict[str, Any]:
    """A conversation with the messages of the branch that is shown."""
    branch = messages.path(rows, there["leaf"])
    return {
        **conversation_json(there),
        "messages": await call.site.branch_json(rows, there["leaf"]),
        "context": await call.site.context(there, branch),
    }


@ROUTES.add("GET", "/api/conversations/{conversation_id}")
async def _one(call: Call) -> dict[str, Any]:
    """A conversation: the branch that is shown, and its context meter."""
    conversation_id = call.param("conversation_id")
    there, rows = await call.site.database.read(_read, call.user.id, conversation_id)
    return await whole_json(call, there, rows)


@ROUTES.add("PATCH", "/api/conversations/{conversation_id}", body=Changes)
async def _change(call: Call) -> dict[str, Any]:
    """Changes a conversation; `leaf` shows the newest branch through that message."""
    conversation_id = call.param("conversation_id")
    values = call.body.model_dump(exclude_unset=True, exclude={"leaf", "sampling"})
    given = call.body.model_fields_set
    if "sampling" in given:
        made = call.body.sampling
        values["sampling"] = {} if made is None else made.model_dump(exclude_none=True)
    for name in ("title", "pinned", "system", "leaf"):
        if name in given and getattr(call.body, name) is None:
            raise Fault(400, f"{name} is null", name)
    if values.get("model") is not None:
        call.site.model(values["model"])

    def change(c: sa.Connection) -> tuple[Row, dict[str, Row]]:
        user_id = call.user.id
        conversations.one(c, user_id, conversation_id)
        if values:
            conversations.change(c, user_id, conversation_id, **values)
        if call.body.leaf is not None:
            messages.show_branch(c, user_id, conversation_id, call.body.leaf)
        return _read(c, user_id, conversation_id)

    return await whole_json(call, *await call.site.database.write(change))


@ROUTES.add("DELETE", "/api/conversations/{conversation_id}")
async def _delete(call: Call) -> None:
    """Deletes a conversation; its answers that are being written stop."""
    conversation_id, user_id = call.param("conversation_id"), call.user.id
    await call.site.database.read(conversations.one, user_id, conversation_id)
    await call.site.answers.stop(lambda one: one.conversation_id == conversation_id)
    await call.site.database.write(conversations.delete, user_id, conversation_id)


@ROUTES.add("POST", "/api/conversations/{conversation_id}/share")
async def _share(call: Call) -> dict[str, Any]:
    """Makes a link under which anybody reads the branch that is shown now."""
    token = await call.site.database.write(
        conversations.share, call.user.id, call.param("conversation_id")
    )
    return {"url": f"/share/{token}"}


@ROUTES.add("DELETE", "/api/conversations/{conversation_id}/share")
async def _unshare(call: Call) -> None:
    """Revokes the link."""
    await call.site.database.write(
        conversations.unshare, call.user.id, call.param("conversation_id")
    )


@ROUTES.add("GET", "/api/conversations/{conversation_id}/export")
async def _export(call: Call) -> Response:
    """A conversation as a file: JSON with all branches, or Markdown of the one that is shown."""
    form = call.query("format", "json")
    if form not in ("json", "markdown"):
        raise Fault(400, "format is neither json nor markdown", "format")
    conversation_id = call.param("conversation_id")
    there, rows = await call.site.database.read(_read, call.user.id, conversation_id)
    ending = "json" if form == "json" else "md"
    headers = {
        "Content-Disposition": f'attachment; filename="conversation.{ending}"',
        "Cache-Control": "no-store",
    }
    if form == "json":
        return JSONResponse(transfer.exported(there, rows), headers=headers)
    return Response(
        transfer.as_markdown(there, messages.path(rows, there["leaf"])),
        media_type="text/markdown; charset=utf-8",
        headers=headers,
    )


@ROUTES.add("POST", "/api/import", body=transfer.Imported)
async def _import(call: Call) -> dict[str, Any]:
    """Makes a conversation of an exported one, or of {"messages": [{"role", "content"}, …]}."""

    def add(c: sa.Connection) -> str:
        return transfer.import_one(c, call.user.id, call.body)

    return {"id": await call.site.database.write(add)}


@ROUTES.add("POST", "/api/messages/{message_id}/rating", body=Rating)
async def _rate(call: Call) -> dict[str, Any]:
    """Rates an answer: 1 is good, -1 bad, 0 takes it back."""
    await call.site.database.write(
        messages.rate, call.user.id, call.param("message_id"), call.body.value
    )
    return {"value": call.body.value}

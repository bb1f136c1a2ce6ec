"""Conversations as files, and back."""

from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import Field

from gchat.serve.bodies import Strict, listed
from gchat.serve.site import conversations, messages
from gchat.serve.site.conversations import LONGEST_TITLE
from gchat.serve.site.faults import Fault
from gchat.serve.site.sampling import Sampling

Row = dict[str, Any]
FORMAT, VERSION = "gchat-conversation", 1
_KEPT = ("id", "parent", "role", "content", "status", "model", "created_at", "rating", "sources")


class ImportedSource(Strict):
    """A page that an answer may quote."""

    n: int | None = Field(default=None, ge=1, lt=2**31)
    title: str = Field("", max_length=300)
    url: str = Field(pattern=r"^https?://[^\s/]", max_length=2000)


class ImportedMessage(Strict):
    """A message; without `parent` it follows the one before."""

    id: str | None = Field(default=None, max_length=64)
    parent: str | None = Field(default=None, max_length=64)
    role: Literal["system", "user", "assistant"]
    content: str
    status: Literal["done", "stopped", "failed", "streaming"] = "done"
    model: str | None = Field(default=None, max_length=256)
    created_at: int | None = Field(default=None, ge=0, lt=2**53)
    rating: Literal[-1, 0, 1] = 0
    sources: Annotated[list[ImportedSource], listed(100)] | None = None


class Imported(Strict):
    """An exported conversation, or any list of messages."""

    format: Literal["gchat-conversation"] | None = None
    version: int | None = Field(None, ge=1)
    title: str = Field("", max_length=LONGEST_TITLE)
    system: str = Field("", max_length=100_000)
    sampling: Sampling | None = None
    leaf: str | None = Field(default=None, max_length=64)
    messages: Annotated[list[ImportedMessage], listed(messages.MOST_MESSAGES)]


def exported(there: Row, rows: dict[str, Row]) -> dict[str, Any]:
    """A conversation with all of its branches."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **{name: there[name] for name in ("title", "system", "sampling", "leaf")},
        "messages": [{name: row[name] for name in _KEPT} for row in rows.values()],
    }


def as_markdown(there: Row, branch: list[Row]) -> str:
    """A branch as Markdown; a message is quoted as it was written."""
    title = " ".join(there["title"].split()) or "Conversation"
    parts = [f"# {title}"]
    if there["system"]:
        parts += ["## System", there["system"]]
    for row in branch:
        name = "User" if row["role"] == "user" else "Assistant"
        parts += [f"## {name}", row["content"]]
        if row["sources"]:
            listed = (f"{one['n']}. {one['title']} <{one['url']}>" for one in row["sources"])
            parts.append("\n".join(["Sources:", "", *listed]))
        if row["status"] in ("failed", "stopped"):
            parts.append(f"*({row['status']})*")
    return "\n\n".join(parts) + "\n"


def import_one(c: sa.Connection, user_id: str, given: Imported) -> str:
    """Adds a conversation; returns its id.

    Raises:
        Fault: it is of a newer version, or its messages make no tree of turns.
    """
    if (given.version or 1) > VERSION:
        raise Fault(400, f"the file is of version {given.version}; this site reads {VERSION}",
                    "version")  # fmt: skip
    system, listed = given.system, list(given.messages)
    if listed and listed[0].role == "system":
        system = "\n\n".join(text for text in (system, listed.pop(0).content) if text)
    if not listed:
        raise Fault(400, "messages is empty", "messages")
    title = given.title or title_of(listed[0].content)
    sampling = given.sampling.model_dump(exclude_none=True) if given.sampling else {}
    made = conversations.add(c, user_id, title=title, system=system, sampling=sampling)
    ids = add_turns(c, user_id, made, listed)
    leaf = ids.get(given.leaf or "", list(ids.values())[-1])
    conversations.change(c, user_id, made, leaf=leaf)
    return made


def add_turns(
    c: sa.Connection, user_id: str, conversation_id: str, listed: list[ImportedMessage]
) -> dict[str, str]:
    """Adds messages that make a tree; returns their new ids by those in the file."""
    ids: dict[str, str] = {}
    roles: dict[str | None, str] = {None: "assistant"}
    rows, before = list[Row](), None
    for i, one in enumerate(listed):
        old = one.id if one.id is not None else f"#{i}"
        parent = one.parent if one.id is not None or one.parent is not None else before
        if old in ids:
            raise Fault(400, f"messages[{i}].id is there twice", f"messages.{i}.id")
        if parent is not None and parent not in ids:
            raise Fault(
                400, f"messages[{i}].parent is no message before it", f"messages.{i}.parent"
            )
        if one.role == "system" or one.role == roles[parent]:
            raise Fault(
                400, f"messages[{i}].role is {one.role!r}: let user and assistant take turns, the "
                "user first", f"messages.{i}.role",
            )  # fmt: skip
        status = "done" if one.role == "user" else one.status
        row: Row = {
            "id": conversations.new_id(), "parent": None if parent is None else ids[parent],
            "role": one.role, "content": one.content, "model": one.model, "rating": one.rating,
            "status": "stopped" if status == "streaming" else status,
            "sources": [{"n": n, "title": source.title or source.url, "url": source.url}
                        for n, source in enumerate(one.sources or (), 1)],
        }  # fmt: skip
        if one.created_at is not None:
            row["created_at"] = one.created_at
        ids[old], roles[old], before = row["id"], one.role, old
        rows.append(row)
    messages.add_all(c, user_id, conversation_id, rows)
    return ids


def title_of(text: str) -> str:
    """A title from the first words of a message."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:60].rsplit(" ", 1)[0][:60] + "…"

"""Conversations of users in the database: listed, searched, changed. Each function is one step.

Every function takes the user whose conversation it must be: somebody else's is not there.
"""

import base64
import binascii
import json
from typing import Any

import sqlalchemy as sa

from gchat.serve.site import search_index
from gchat.serve.site.clock import new_id, new_secret, now
from gchat.serve.site.faults import Fault, missing
from gchat.serve.site.tables import conversations, messages, pieces, users

LONGEST_TITLE = 200
_LISTED = (
    conversations.c.id, conversations.c.title, conversations.c.pinned, conversations.c.updated_at
)  # fmt: skip


def next_position(c: sa.Connection) -> int:
    """A number above all that were given out, for order.

    Writers of one site take turns on SQLite; on PostgreSQL the numbers of two conversations may
    come to be equal, and their ids then decide.
    """
    highest = [sa.select(sa.func.max(table.c.position)) for table in (conversations, messages)]
    return max(c.execute(one).scalar() or 0 for one in highest) + 1


def add(c: sa.Connection, user_id: str, **values: Any) -> str:
    """Makes an empty conversation; returns its id."""
    moment = now()
    row = {"id": new_id(), "user_id": user_id, "position": next_position(c), "created_at": moment,
           "updated_at": moment, **values}  # fmt: skip
    c.execute(sa.insert(conversations).values(row))
    if row.get("title"):
        search_index.add(c, user_id, row["id"], [(row["id"], row["title"])])
    return row["id"]


def one(c: sa.Connection, user_id: str, conversation_id: str) -> dict[str, Any]:
    """A conversation of this user; Fault where he has none of this id."""
    chosen = sa.select(conversations).where(
        conversations.c.id == conversation_id, conversations.c.user_id == user_id
    )
    row = c.execute(chosen).first()
    if row is None:
        raise missing("conversation")
    return dict(row._mapping)


def listed(
    c: sa.Connection, user_id: str, search: str = "", before: str = "", limit: int = 50
) -> dict[str, Any]:
    """Conversations, pinned ones first, then the newest; `next` is the `before` of the next page.

    Raises:
        Fault: `before` is not what an earlier page gave.
    """
    where = [conversations.c.user_id == user_id]
    if search.strip():
        match = search_index.matching(c, user_id, search)
        if match is None:
            return {"items": [], "next": None}
        where.append(match)
    order = (conversations.c.pinned, conversations.c.position, conversations.c.id)
    if before:
        where.append(sa.tuple_(*order) < sa.tuple_(*map(sa.literal, _cursor(before))))
    rows = c.execute(
        sa.select(*_LISTED, conversations.c.position)
        .where(*where)
        .order_by(*(column.desc() for column in order))
        .limit(limit + 1)
    ).all()
    items = [
        {"id": r.id, "title": r.title, "pinned": r.pinned, "updated_at": r.updated_at}
        for r in rows[:limit]
    ]
    further = None
    if len(rows) > limit:
        last = rows[limit - 1]
        raw = json.dumps([int(last.pinned), last.position, last.id]).encode()
        further = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return {"items": items, "next": further}


def _cursor(text: str) -> tuple[bool, int, str]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        pinned, position, last = json.loads(raw)
        if isinstance(position, int) and abs(position) < 2**62 and isinstance(last, str):
            return bool(pinned), position, last.replace("\0", "")
    except (ValueError, TypeError, binascii.Error, RecursionError):
        pass
    raise Fault(400, "before is not the `next` of an earlier page", "before")


def change(c: sa.Connection, user_id: str, conversation_id: str, **values: Any) -> None:
    """Changes fields of a conversation."""
    one(c, user_id, conversation_id)
    c.execute(sa.update(conversations).where(conversations.c.id == conversation_id).values(values))
    if "title" in values:
        search_index.add(c, user_id, conversation_id, [(conversation_id, values["title"])])


def touch(c: sa.Connection, conversation_id: str, **values: Any) -> None:
    """Moves a conversation to the top, and changes fields."""
    moved = {"position": next_position(c), "updated_at": now(), **values}
    c.execute(sa.update(conversations).where(conversations.c.id == conversation_id).values(moved))


def delete(c: sa.Connection, user_id: str, conversation_id: str) -> None:
    """Deletes a conversation with all that belongs to it."""
    one(c, user_id, conversation_id)
    inside = sa.select(messages.c.id).where(messages.c.conversation_id == conversation_id)
    c.execute(sa.delete(pieces).where(pieces.c.message_id.in_(inside)))
    search_index.remove_conversation(c, conversation_id)
    c.execute(sa.delete(conversations).where(conversations.c.id == conversation_id))


def share(c: sa.Connection, user_id: str, conversation_id: str) -> str:
    """The token of the link under which the branch that is shown now can be read by anybody."""
    there = one(c, user_id, conversation_id)
    if there["leaf"] is None:
        raise Fault(409, "an empty conversation cannot be shared")
    token = there["share"] or new_secret()
    values = {"share": token, "share_leaf": there["leaf"]}
    c.execute(sa.update(conversations).where(conversations.c.id == conversation_id).values(values))
    return token


def unshare(c: sa.Connection, user_id: str, conversation_id: str) -> None:
    """Revokes the link."""
    change(c, user_id, conversation_id, share=None, share_leaf=None)


def shared(c: sa.Connection, token: str) -> dict[str, Any]:
    """The conversation behind a link; Fault where there is none, or its owner is disabled."""
    owner = sa.and_(users.c.id == conversations.c.user_id, ~users.c.disabled)
    chosen = sa.select(conversations).join(users, owner).where(conversations.c.share == token)
    row = c.execute(chosen).first()
    if row is None:
        raise missing("page")
    return dict(row._mapping)

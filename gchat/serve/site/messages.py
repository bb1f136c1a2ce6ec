"""Messages in the database: trees whose branches are edits and regenerated answers."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from gchat.serve.site import conversations, search_index
from gchat.serve.site.clock import new_id, now
from gchat.serve.site.faults import Fault, missing
from gchat.serve.site.tables import conversations as conversations_table
from gchat.serve.site.tables import messages, pieces

Row = dict[str, Any]
MOST_MESSAGES = 20_000
INTERRUPTED = "the server stopped while this was being written"


def tree(c: sa.Connection, conversation_id: str) -> dict[str, Row]:
    """All messages of a conversation by id, oldest first; those being written as far as saved."""
    chosen = sa.select(messages).where(messages.c.conversation_id == conversation_id)
    rows = c.execute(chosen.order_by(messages.c.position, messages.c.id))
    made = {row.id: dict(row._mapping) for row in rows}
    for row in made.values():
        row["n"] = 0
        if row["status"] == "streaming":
            row["content"], row["n"] = _written(c, row["id"])
    return made


def _written(c: sa.Connection, message_id: str) -> tuple[str, int]:
    chosen = sa.select(pieces.c.n, pieces.c.text).where(pieces.c.message_id == message_id)
    rows = c.execute(chosen.order_by(pieces.c.n)).all()
    return "".join(row.text for row in rows), rows[-1].n if rows else 0


def path(rows: dict[str, Row], leaf: str | None) -> list[Row]:
    """The messages from the first down to a leaf."""
    made: list[Row] = []
    while leaf is not None and leaf in rows and len(made) <= len(rows):
        made.append(rows[leaf])
        leaf = rows[leaf]["parent"]
    return made[::-1]


def siblings(rows: dict[str, Row]) -> dict[str | None, list[str]]:
    """Ids of the children of each message, oldest first; of None those that begin."""
    made: dict[str | None, list[str]] = {}
    for row in rows.values():
        made.setdefault(row["parent"], []).append(row["id"])
    return made


def newest_leaf(rows: dict[str, Row], message_id: str) -> str:
    """The end of the newest branch below a message."""
    children = siblings(rows)
    while message_id in children:
        message_id = children[message_id][-1]
    return message_id


def owned(c: sa.Connection, user_id: str, message_id: str) -> Row:
    """A message in a conversation of this user; Fault where he has none of this id."""
    row = c.execute(
        sa.select(messages)
        .join(conversations_table, conversations_table.c.id == messages.c.conversation_id)
        .where(messages.c.id == message_id, conversations_table.c.user_id == user_id)
    ).first()
    if row is None:
        raise missing("message")
    return dict(row._mapping) | {"n": 0}


def show_branch(c: sa.Connection, user_id: str, conversation_id: str, message_id: str) -> None:
    """Makes the newest branch through a message the one that is shown."""
    conversations.one(c, user_id, conversation_id)
    rows = tree(c, conversation_id)
    if message_id not in rows:
        raise missing("message")
    conversations.change(c, user_id, conversation_id, leaf=newest_leaf(rows, message_id))


def add_all(c: sa.Connection, user_id: str, conversation_id: str, rows: Sequence[Row]) -> list[str]:
    """Adds messages, each with role, content and parent; returns their ids."""
    position, moment = conversations.next_position(c), now()
    made = [
        {"id": new_id(), "conversation_id": conversation_id, "created_at": moment,
         "position": position + i, "status": "done", "error": None, "model": None, "tokens": None,
         "sources": [], "rating": 0, **row}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    if made:
        c.execute(sa.insert(messages), made)
    texts = [(row["id"], row["content"]) for row in made if row["status"] != "streaming"]
    search_index.add(c, user_id, conversation_id, texts)
    return [row["id"] for row in made]


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────


def ask(
    c: sa.Connection, user_id: str, conversation_id: str, content: str, parent: str | None
) -> str:
    """Adds a user's message below another; returns its id.

    Raises:
        Fault: there is no such message, it is being written, or it is a user's too.
    """
    rows = tree(c, conversation_id)
    if len(rows) >= MOST_MESSAGES:
        raise Fault(409, f"a conversation has at most {MOST_MESSAGES} messages; begin a new one")
    if parent is not None:
        if parent not in rows:
            raise Fault(409, "the message that this answers is gone; reload the page", "parent")
        if rows[parent]["status"] == "streaming":
            raise Fault(409, "the answer above is still being written; stop it first", "parent")
        if rows[parent]["role"] != "assistant":
            raise Fault(409, "the message above has no answer yet; regenerate it first", "parent")
    row = {"role": "user", "content": content, "parent": parent}
    return add_all(c, user_id, conversation_id, [row])[0]


def begin_answer(
    c: sa.Connection, user_id: str, conversation_id: str, parent: str, model: str
) -> str:
    """Adds the empty answer to a user's message, and shows its branch; returns its id."""
    row = {"role": "assistant", "content": "", "parent": parent, "status": "streaming",
           "model": model}  # fmt: skip
    (message_id,) = add_all(c, user_id, conversation_id, [row])
    conversations.touch(c, conversation_id, leaf=message_id)
    return message_id


def question_of(c: sa.Connection, user_id: str, message_id: str) -> tuple[str, str]:
    """(conversation, user's message) that an answer answers; or the message itself, if a user's."""
    row = owned(c, user_id, message_id)
    if row["role"] == "user":
        return row["conversation_id"], message_id
    if row["status"] == "streaming":
        raise Fault(409, "the answer is still being written; stop it first", "regenerate")
    if row["parent"] is None:
        raise Fault(409, "the message answers nothing", "regenerate")
    return row["conversation_id"], row["parent"]


def save_pieces(c: sa.Connection, rows: Sequence[Row]) -> None:
    """Saves pieces of answers; those that are there (after a commit in doubt) stay."""
    if not rows:
        return
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = sqlite if c.dialect.name == "sqlite" else postgresql
    c.execute(dialect.insert(pieces).on_conflict_do_nothing(), list(rows))


def end_answer(c: sa.Connection, user_id: str, message_id: str, **values: Any) -> None:
    """Ends an answer: its text, how it ended, its tokens; doing it again changes nothing."""
    open_answer = sa.and_(messages.c.id == message_id, messages.c.status == "streaming")
    row = c.execute(sa.select(messages.c.conversation_id).where(open_answer)).first()
    if row is not None:
        c.execute(sa.update(messages).where(messages.c.id == message_id).values(values))
        search_index.add(c, user_id, row.conversation_id, [(message_id, values["content"])])
    c.execute(sa.delete(pieces).where(pieces.c.message_id == message_id))


def end_interrupted(c: sa.Connection) -> int:
    """Ends all answers that a server left unfinished, with the text that was saved."""
    rows = c.execute(
        sa.select(messages.c.id, conversations_table.c.user_id)
        .join(conversations_table, conversations_table.c.id == messages.c.conversation_id)
        .where(messages.c.status == "streaming")
    ).all()
    for row in rows:
        text, _ = _written(c, row.id)
        end_answer(c, row.user_id, row.id, content=text, status="failed", error=INTERRUPTED)
    return len(rows)


def rate(c: sa.Connection, user_id: str, message_id: str, value: int) -> None:
    """Notes that an answer is good (1), bad (-1), or neither (0)."""
    if owned(c, user_id, message_id)["role"] != "assistant":
        raise Fault(409, "only answers are rated")
    c.execute(sa.update(messages).where(messages.c.id == message_id).values(rating=value))

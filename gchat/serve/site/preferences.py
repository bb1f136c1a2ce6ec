"""Ratings as pairs of answers, of which people preferred one: what `gchat dpo` reads."""

import json
from typing import Any

import sqlalchemy as sa

from gchat.serve.site import messages as messages_of
from gchat.serve.site.tables import conversations, messages

_MOST_PAIRS = 16  # of one question: its good answers times its bad ones


def lines(c: sa.Connection) -> list[str]:
    """A line of JSON for each pair of answers to the same message, one rated good and one bad."""
    rated = c.execute(
        sa.select(messages.c.conversation_id, messages.c.parent)
        .where(messages.c.rating != 0, messages.c.role == "assistant")
        .group_by(messages.c.conversation_id, messages.c.parent)
        .having(sa.func.max(messages.c.rating) > 0, sa.func.min(messages.c.rating) < 0)
        .order_by(messages.c.conversation_id, messages.c.parent)
    ).all()
    made: list[str] = []
    for conversation_id, parent in rated:
        chosen = sa.select(conversations.c.system).where(conversations.c.id == conversation_id)
        rows = messages_of.tree(c, conversation_id)
        pairs = _pairs(c.execute(chosen).scalar_one(), rows, parent)
        made += [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
    return made


def _pairs(system: str, rows: dict[str, Any], parent: str | None) -> list[dict[str, Any]]:
    branch = messages_of.path(rows, parent)
    if not branch or any(not row["content"].strip() for row in branch):
        return []  # no conversation that can be learned from: an answer above never came
    prompt = [{"role": "system", "content": system}] if system else []
    prompt += [{"role": row["role"], "content": row["content"]} for row in branch]
    answers = [row for row in rows.values() if row["parent"] == parent and row["content"].strip()]
    good = [row["content"] for row in answers if row["rating"] > 0]
    bad = [row["content"] for row in answers if row["rating"] < 0]
    pairs = [(one, other) for one in good for other in bad if one != other]
    return [
        {"prompt": prompt, "chosen": [{"role": "assistant", "content": one}],
         "rejected": [{"role": "assistant", "content": other}]}
        for one, other in pairs[:_MOST_PAIRS]
    ]  # fmt: skip

"""The full-text index: FTS5 on SQLite, tsvector on PostgreSQL.

The owner stands in the index beside the words, so that a query touches only what is his.
"""

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from gchat.serve.site.tables import conversations, search_rows
from gchat.serve.site.words import phrases, words

MOST_MATCHES = 2000
"""Matching texts that a search looks at, the newest first."""


def add(
    c: sa.Connection, user_id: str, conversation_id: str, texts: Iterable[tuple[str, str]]
) -> None:
    """Adds (message id, text), in place of what stood under these ids."""
    for message_id, text in texts:
        remove(c, [message_id])
        row = {"conversation_id": conversation_id, "message_id": message_id}
        made = c.execute(sa.insert(search_rows).values(row).returning(search_rows.c.id))
        number, terms = made.scalar_one(), words(text)
        if _sqlite(c):
            c.execute(
                sa.text(
                    "INSERT INTO search_words(rowid, owner, words) VALUES (:id, :owner, :words)"
                ),
                {"id": number, "owner": _owner(user_id), "words": " ".join(terms)},
            )
        else:
            places = (f"'{term}':{min(n, 16383)}" for n, term in enumerate(terms, 1))
            vector = " ".join([f"'@{user_id}'", *places])
            c.execute(
                sa.text("UPDATE search_rows SET words = CAST(:words AS tsvector) WHERE id = :id"),
                {"id": number, "words": vector},
            )


def remove(c: sa.Connection, message_ids: Sequence[str]) -> None:
    """Takes texts out."""
    _remove(c, search_rows.c.message_id.in_(message_ids))


def remove_conversation(c: sa.Connection, conversation_id: str) -> None:
    """Takes all texts of a conversation out."""
    _remove(c, search_rows.c.conversation_id == conversation_id)


def _remove(c: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    if _sqlite(c):
        rows = c.execute(sa.select(search_rows.c.id).where(which)).scalars().all()
        if rows:
            c.execute(
                sa.text("DELETE FROM search_words WHERE rowid = :id"), [{"id": i} for i in rows]
            )
    c.execute(sa.delete(search_rows).where(which))


def matching(c: sa.Connection, user_id: str, query: str) -> sa.ColumnElement[bool] | None:
    """The condition that a conversation holds all words of a query in one message or its title.

    None where the query has no word. Of words that stand everywhere, the newest matches count.
    """
    wanted = phrases(query)
    if not wanted:
        return None
    if _sqlite(c):
        # Terms hold letters and digits only: nothing in them is FTS5's syntax.
        terms = " AND ".join(f'words : "{" ".join(several)}" *' for several in wanted)
        matches = sa.text(
            "SELECT r.conversation_id FROM search_words w JOIN search_rows r ON r.id = w.rowid "
            "WHERE search_words MATCH :search ORDER BY w.rowid DESC LIMIT :most"
        ).bindparams(search=f"owner : {_owner(user_id)} AND {terms}", most=MOST_MATCHES)
    else:
        terms = " & ".join(_phrase(several) for several in wanted)
        # Materialised, or the limit makes PostgreSQL walk all rows from the newest and try each.
        matches = sa.text(
            "WITH matching AS MATERIALIZED (SELECT id, conversation_id FROM search_rows "
            "WHERE words @@ CAST(:search AS tsquery)) "
            "SELECT conversation_id FROM matching ORDER BY id DESC LIMIT :most"
        ).bindparams(search=f"'@{user_id}' & {terms}", most=MOST_MATCHES)
    return conversations.c.id.in_(matches.columns(sa.column("conversation_id")))  # type: ignore[arg-type]


def _phrase(several: Sequence[str]) -> str:
    quoted = [f"'{word}'" for word in several]
    return "(" + " <-> ".join([*quoted[:-1], f"{quoted[-1]}:*"]) + ")"


def _owner(user_id: str) -> str:
    """An id as one word of FTS5: base64's signs would part it, and case be lost."""
    return "u" + user_id.encode().hex()


def _sqlite(c: sa.Connection) -> bool:
    return c.dialect.name == "sqlite"

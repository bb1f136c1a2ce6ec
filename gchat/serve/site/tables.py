"""The tables of the site, alike on SQLite and PostgreSQL; `migrations/` makes them.

Order comes from `position`, a number that only grows: clocks jump. Secrets (sessions, API keys,
invitations) are kept as SHA-256 of 256 random bits. The full-text index is the one table that
differs between databases: `search_index` knows it.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
ID = sa.String(32)
HASH = sa.String(64)


def _of(table: str, **options: object) -> sa.Column:
    return sa.Column(
        f"{table.removesuffix('s')}_id", ID, sa.ForeignKey(f"{table}.id", ondelete="CASCADE"),
        nullable=False, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def _table(name: str, *columns: sa.Column | sa.Index | sa.UniqueConstraint) -> sa.Table:
    return sa.Table(name, metadata, *columns)


def _text(name: str, default: str | None = "") -> sa.Column:
    if default is None:
        return sa.Column(name, sa.Text)
    return sa.Column(name, sa.Text, nullable=False, server_default=default)


def _number(name: str, default: int | None = None, kind: type = sa.BigInteger) -> sa.Column:
    given = {} if default is None else {"server_default": str(default)}
    return sa.Column(name, kind, nullable=False, **given)  # type: ignore[arg-type]


users = _table(
    "users",
    sa.Column("id", ID, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("key", sa.String(256), nullable=False, unique=True),
    sa.Column("skeleton", sa.String(256), nullable=False, unique=True),
    _text("password"),
    sa.Column("role", sa.String(8), nullable=False, server_default="user"),
    sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("quota", sa.BigInteger),
    sa.Column("settings", sa.JSON, nullable=False, server_default="{}"),
    _number("created_at"),
)
"""`key` is the name as it is looked up, `skeleton` as it looks: no two may look alike."""

sessions = _table(
    "sessions",
    sa.Column("hash", HASH, primary_key=True),
    _of("users", index=True),
    _number("created_at"),
    _number("seen_at"),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("address", sa.String(64), nullable=False, server_default=""),
)

api_keys = _table(
    "api_keys",
    sa.Column("id", ID, primary_key=True),
    _of("users", index=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("hash", HASH, nullable=False, unique=True),
    _number("created_at"),
    sa.Column("used_at", sa.BigInteger),
)

invitations = _table(
    "invitations",
    sa.Column("id", ID, primary_key=True),
    sa.Column("hash", HASH, nullable=False, unique=True),
    _text("made_by"),
    _number("created_at"),
    _number("expires_at"),
    _number("left", 1, sa.Integer),
)

conversations = _table(
    "conversations",
    sa.Column("id", ID, primary_key=True),
    _of("users"),
    sa.Column("title", sa.String(256), nullable=False, server_default=""),
    sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
    _number("position"),
    _number("created_at"),
    _number("updated_at"),
    _text("system"),
    sa.Column("sampling", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("model", sa.String(256)),
    sa.Column("leaf", ID),
    sa.Column("share", sa.String(64), unique=True),
    sa.Column("share_leaf", ID),
    sa.Index("ix_conversations_listed", "user_id", "pinned", "position"),
    sa.Index("ix_conversations_position", "position"),
)
"""`leaf` ends the branch that is shown, `share_leaf` the one that is shared."""

messages = _table(
    "messages",
    sa.Column("id", ID, primary_key=True),
    _of("conversations"),
    sa.Column("parent", ID),
    _number("position"),
    sa.Column("role", sa.String(16), nullable=False),
    _text("content"),
    sa.Column("status", sa.String(16), nullable=False, server_default="done"),
    _text("error", None),
    sa.Column("model", sa.String(256)),
    sa.Column("tokens", sa.Integer),
    sa.Column("sources", sa.JSON, nullable=False, server_default="[]"),
    _number("rating", 0, sa.Integer),
    _number("created_at"),
    sa.Index("ix_messages_order", "conversation_id", "position"),
    sa.Index("ix_messages_position", "position"),
    sa.Index("ix_messages_status", "status"),
    sa.Index("ix_messages_rating", "rating"),
)

pieces = _table(
    "pieces",
    sa.Column("message_id", ID, primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
    _text("text"),
)
"""Pieces of answers that are being written; joined into `messages.content` at the end."""

usage = _table(
    "usage",
    _of("users", primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    _number("tokens", 0),
)

audit = _table(
    "audit",
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    _number("at"),
    _text("actor"),
    sa.Column("action", sa.String(64), nullable=False),
    _text("target"),
    _text("detail"),
    sa.Column("address", sa.String(64), nullable=False, server_default=""),
)

samples = _table(
    "samples",
    sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("data", sa.JSON, nullable=False),
)
"""State of the running site every few seconds, for charts and for `gchat web admin status`."""

search_rows = _table(
    "search_rows",
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    _of("conversations", index=True),
    sa.Column("message_id", ID, nullable=False, unique=True),
)
"""Texts of the full-text index; a title stands under its conversation's own id."""

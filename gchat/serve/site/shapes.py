"""JSON of what the database holds."""

from typing import Any

Row = dict[str, Any]
_MESSAGE = (
    "id", "parent", "role", "content", "status", "error", "created_at", "tokens", "model",
    "sources", "rating", "n",
)  # fmt: skip
_CONVERSATION = (
    "id", "title", "pinned", "created_at", "updated_at", "system", "sampling", "model", "leaf"
)  # fmt: skip


def message_json(row: Row, html: str, siblings: list[str]) -> dict[str, Any]:
    """A message, its text as safe HTML beside it, and those that stand in its place."""
    return {**{name: row[name] for name in _MESSAGE}, "html": html, "siblings": siblings}


def conversation_json(row: Row) -> dict[str, Any]:
    """A conversation without its messages."""
    share = None if row["share"] is None else f"/share/{row['share']}"
    return {**{name: row[name] for name in _CONVERSATION}, "share": share}

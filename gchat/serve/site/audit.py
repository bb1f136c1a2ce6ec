"""The log of what administrators and owners of accounts did, kept in the database."""

from typing import Any

import sqlalchemy as sa

from gchat.serve.site.clock import now
from gchat.serve.site.faults import Fault
from gchat.serve.site.tables import audit


def note(
    c: sa.Connection, actor: str, action: str, target: str = "", detail: str = "", address: str = ""
) -> None:
    """Adds an entry; it must hold no secret."""
    row = {"at": now(), "actor": actor, "action": action, "target": target, "detail": detail,
           "address": address[:64]}  # fmt: skip
    c.execute(sa.insert(audit).values(row))


def listed(c: sa.Connection, before: str = "", limit: int = 100) -> dict[str, Any]:
    """Entries, the newest first; `next` is the `before` of the next page."""
    chosen = sa.select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
    if before:
        if not (before.isascii() and before.isdigit() and len(before) < 18):
            raise Fault(400, "before is not the `next` of an earlier page", "before")
        chosen = chosen.where(audit.c.id < int(before))
    rows = [dict(row._mapping) for row in c.execute(chosen)]
    further = str(rows[limit - 1]["id"]) if len(rows) > limit else None
    return {"items": rows[:limit], "next": further}

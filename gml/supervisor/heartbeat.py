"""The supervisor's heartbeat: a document that tells when the last pass over all queues ended."""

from __future__ import annotations

import contextlib

from gml.documents import NEW, Conflict, Documents

NAME = "supervisor"


def beat(documents: Documents, now: float) -> None:
    """Leaves the heartbeat of a pass."""
    there = documents.read(NAME)
    with contextlib.suppress(Conflict):  # another one was here at this moment
        documents.write(NAME, {"at": round(now)}, there[1] if there else NEW)


def last_pass(documents: Documents, now: float) -> float | None:
    """Seconds since the last pass, or None where none was ever seen."""
    there = documents.read(NAME)
    return now - float(there[0].get("at", 0)) if there else None

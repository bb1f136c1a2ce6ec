"""The time at which a node that is gone ended: what it has cost depends on it."""

from __future__ import annotations

from gml.errors import GmlError
from gml.fleet import Fleet
from gml.model import Node


def ended_at(fleet: Fleet, node: Node) -> int:
    """Unix seconds at which a node that no longer exists ended.

    The service's own record of the deletion, else the deadline or the provider's limit (whichever
    came first), else now.
    """
    try:
        known = fleet.provider(node.provider).ended_at(node)
    except GmlError:
        known = None
    now = round(fleet.now())
    if known is not None:
        return min(now, max(known, node.created))
    return min(t for t in (now, node.deadline, node.limit) if t)

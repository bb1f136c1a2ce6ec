"""Moves a node's end, and deletes nodes."""

from __future__ import annotations

import contextlib

from gml import budget
from gml.durations import format_duration, format_time
from gml.errors import Denied, NotFound, Unavailable, Unsafe, UsageError
from gml.fleet import Fleet
from gml.model import ApiRequest, Node
from gml.nodes.ending import ended_at
from gml.progress import Progress, silent, unbreakable
from gml.threads import on_hosts


def extend(fleet: Fleet, node: Node, deadline: int | None = None, *, by: int = 0) -> Node:
    """Moves the deadline in the label, in the record and on the machine itself.

    Args:
        fleet: whose node it is.
        node: the node.
        deadline: its new end, None for no end at all.
        by: seconds to add to the end that stands in its label, instead of `deadline`.

    Raises:
        Unsafe: the provider's own limit ends earlier (it says until when), or the time that is
            added would pass the month's budget. NotFound: it is gone.
    """
    provider = fleet.provider(node.provider)
    with fleet.store.lock(node.id):
        node = _as_labelled(fleet, node)
        deadline = _later(node, by) if by else deadline
        _check_limit(fleet, node, deadline)
        with budget.reserving(fleet):  # two at once must not both take the same last dollars
            budget.check_longer(fleet, node, deadline)
            moved = fleet.store.put(provider.set_deadline(node, deadline))
        if node.provider != "local":
            _tell_watchdogs(fleet, moved, node.deadline)
        return moved


def _as_labelled(fleet: Fleet, node: Node) -> Node:
    """The node with the end that its labels say: another computer may have moved it meanwhile."""
    live = fleet.provider(node.provider).find(node)
    if live is None:
        raise NotFound(f"{node.id} is gone", "see `gml ls --refresh`")
    return node.replace(deadline=live.deadline, limit=live.limit or node.limit)


def _later(node: Node, by: int) -> int:
    if node.deadline is None:
        raise UsageError(f"{node.id} has no end to extend", f"`gml node timeout reset {node.id}`")
    if node.deadline == 0:
        remedy = f"set one with `gml node timeout reset {node.id} --timeout 3h`"
        raise UsageError(f"the end in the labels of {node.id} can't be read", remedy)
    return node.deadline + by


def _check_limit(fleet: Fleet, node: Node, deadline: int | None) -> None:
    if node.limit is None:
        return
    if deadline is None:
        raise Unsafe(
            f"{node.provider} itself deletes {node.id} at {format_time(node.limit)}",
            "that limit can't be removed; make another node with a longer --timeout",
        )
    if deadline > node.limit:
        raise Unsafe(
            f"{node.provider} itself deletes {node.id} at {format_time(node.limit)} "
            f"(in {format_duration(node.limit - fleet.now())})",
            "that limit can't move; extend up to it, or create with a larger --limit",
        )


def _tell_watchdogs(fleet: Fleet, moved: Node, before: int | None) -> None:
    value = "none" if moved.deadline is None else str(moved.deadline)
    script = f"printf %s {value} | sudo -n tee /var/lib/gml/deadline >/dev/null"

    def tell(index: int) -> None:
        try:
            fleet.ssh.run(moved, script, index=index)
        except Unavailable as error:
            raise Unavailable(
                f"the labels of {moved.id} have the new end, but its watchdog may still end it "
                f"at {'no time' if before is None else format_time(before)}: {error.problem}",
                "run it again once ssh works",
            ) from None

    on_hosts(len(moved.hosts), tell)


def delete(fleet: Fleet, node: Node, progress: Progress = silent) -> Node:
    """Deletes the node and its record; neither output nor disk is needed for it.

    Returns:
        The node with the time at which it ended.

    Raises:
        Denied: its labels name another owner. Unavailable, Incomplete: it may still exist.
    """
    provider = fleet.provider(node.provider)
    with fleet.store.lock(node.id, needs_disk=False):
        live = provider.find(node)
        owner = live.owner if live else node.owner
        if owner != fleet.config.owner:
            raise Denied(
                f"{node.id} belongs to {owner}, you are {fleet.config.owner}",
                "set GML_OWNER if both are you",
            )
        end = 0 if live else ended_at(fleet, node)
        record = fleet.store.get(node.id)
        # A queue's machine and the user's own may share a name: the other one's record stays.
        ours = record is None or record.queue == node.queue
        with contextlib.suppress(OSError):
            if record is not None and ours:
                fleet.store.put(node.replace(phase="deleting"))
        provider.delete(_union(node, live), unbreakable(progress))
        # A record that can't be dropped now is dropped by the next `gml reap`.
        ended = node.replace(deleted=end or round(fleet.now()))
        with contextlib.suppress(OSError):
            if ours:
                fleet.store.remove(node, deleted=ended.deleted)
                fleet.ssh.forget(node)
        return ended


def delete_plan(fleet: Fleet, node: Node) -> list[dict]:
    """Requests of `delete`, for `--dry-run`."""
    return _describe(fleet, node, fleet.provider(node.provider).delete_requests(node))


def extend_plan(
    fleet: Fleet, node: Node, deadline: int | None = None, *, by: int = 0
) -> list[dict]:
    """Requests of `extend`, for `--dry-run`; refused where `extend` would be."""
    node = _as_labelled(fleet, node)
    deadline = _later(node, by) if by else deadline
    _check_limit(fleet, node, deadline)
    budget.check_longer(fleet, node, deadline)
    requests = fleet.provider(node.provider).deadline_requests(node, deadline)
    return _describe(fleet, node, requests)


def _describe(fleet: Fleet, node: Node, requests: list[ApiRequest]) -> list[dict]:
    provider = fleet.provider(node.provider)
    return [r.describe(provider.base_url(r.service)) for r in requests]


def _union(node: Node, live: Node | None) -> Node:
    if live is None:
        return node
    return node.replace(
        resources=tuple(dict.fromkeys((*node.resources, *live.resources))),
        zone=node.zone or live.zone,
        strategy=node.strategy or live.strategy,
    )

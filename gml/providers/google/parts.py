"""Resources of all kinds as parts of nodes, and the parts of one node merged into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gml.model import Node
from gml.providers.google import responses

# Which of several states speaks for the node: a dead part outweighs a waiting one.
_RANK = (
    "preempted", "failed", "suspended", "terminated", "unhealthy", "ready", "deleting", "creating",
    "waiting", "active", "leftover",
)  # fmt: skip


def part_of(raw: dict[str, Any], path: str, user: str = "") -> Node | None:
    """A resource as (a part of) a node, by what its path says it is; None when not ours."""
    if "/queuedResources/" in path:
        return responses.queued_resource(raw)
    if "/clusters/" in path:
        return responses.cluster(raw, path)
    if "/nodes/" in path:
        return responses.tpu_node(raw, user)
    if "/instances/" in path:
        return responses.instance(raw, user)
    if "/disks/" in path:
        return responses.disk(raw)
    if "/instanceGroupManagers/" in path:
        return responses.described(raw, "instanceGroupManagers", _place(path), "creating")
    kind = "instanceTemplates" if "/instanceTemplates/" in path else "resourcePolicies"
    return responses.described(raw, kind, _place(path), "leftover")


def _place(path: str) -> str:
    parts = Path(path).parts
    for kind in ("zones", "regions"):
        if kind in parts:
            return f"{kind}/{parts[parts.index(kind) + 1]}"
    return "global"


def items(page: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Items of a TPU list, a global list or an aggregated list, each with its `_path`."""
    if kind in ("nodes", "queuedResources"):
        listed = page.get(kind, [])
        return [{**raw, "_path": f"/{raw.get('name', '')}"} for raw in listed]
    if kind == "clusters":
        return [{**raw, "_path": responses.cluster_path(raw)} for raw in page.get(kind, [])]
    if isinstance(page.get("items"), list):
        return [{**r, "_path": responses.self_path(r, kind, "global")} for r in page["items"]]
    listed = []
    for place, scope in (page.get("items") or {}).items():
        listed += [{**r, "_path": responses.self_path(r, kind, place)} for r in scope.get(kind, [])]
    return listed


def unreachable(page: dict[str, Any]) -> list[str]:
    """Places that a list could not look at."""
    keys = ("unreachable", "unreachables", "missingZones")
    places = [place for key in keys for place in page.get(key, [])]
    items = page.get("items")
    for place, scope in items.items() if isinstance(items, dict) else ():
        if (scope.get("warning") or {}).get("code") == "UNREACHABLE":
            places.append(place)
    return places


def merge(parts: list[Node]) -> list[Node]:
    """One Node per id, owner and queue; a machine's labels (moved by `extend`) beat its request's.

    A queue's machine and the user's own may have the same name in two zones.
    """
    groups: dict[tuple[str, str, str], list[Node]] = {}
    for part in parts:
        groups.setdefault((part.id, part.owner, part.queue), []).append(part)
    merged = []
    for group in groups.values():
        clusters = [n for n in group if n.strategy == "gke"]
        if clusters:
            # GKE puts our labels on its machines too; those come and go, the cluster counts.
            merged.append(clusters[0])
            continue
        group.sort(key=lambda n: (not _is_machine(n), n.resources))
        first = group[0]
        machines = [n for n in group if _is_machine(n)] or group
        deadlines = [n.deadline for n in machines]
        limits = [n.limit for n in group if n.limit]
        states = sorted({n.state for n in group}, key=lambda s: _RANK.index(s) if s in _RANK else 9)
        merged.append(
            first.replace(
                state=states[0],
                deadline=None if None in deadlines else max(d for d in deadlines if d is not None),
                limit=min(limits) if limits else None,
                strategy=_strategy(group),
                hosts=tuple(h for n in machines for h in n.hosts),
                # Requests before machines: deleting a group or a queued resource takes its own.
                resources=tuple(dict.fromkeys(r for n in reversed(group) for r in n.resources)),
            )
        )
    return merged


def _is_machine(node: Node) -> bool:
    return any("/nodes/" in r or "/instances/" in r for r in node.resources)


def _strategy(group: list[Node]) -> str:
    names = {n.strategy for n in group}
    return "flex" if "flex" in names else "queued" if "queued" in names else group[0].strategy

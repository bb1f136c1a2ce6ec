"""Finds what exists of a node at Google, by name where it was tried, else by label everywhere."""

from __future__ import annotations

import threading

from gml.errors import Denied, Elsewhere, GmlError, Incomplete, StockOut
from gml.model import CreateSpec, Node
from gml.places import region_of
from gml.providers.google import responses
from gml.providers.google.parts import items, merge, part_of, unreachable
from gml.providers.google.requests import cloud_name
from gml.providers.google.session import Session
from gml.threads import in_parallel


def look(session: Session, node: Node | CreateSpec, tried: str) -> Node | None:
    """Looks by name at one place for a node: GETs do not lag behind as lists do."""
    ours = node.made if isinstance(node, CreateSpec) else node.holds
    strategy, _, zone = tried.partition(":")
    name, parts = cloud_name(node.id), []
    if strategy in ("node", "queued", "flex"):
        parts.append(get_part(session, "tpu", f"v2/{session.location(zone)}/nodes/{name}"))
    if strategy in ("queued", "flex"):
        version = "v2alpha1" if strategy == "flex" else "v2"
        path = f"{version}/{session.location(zone)}/queuedResources/{name}"
        parts.append(get_part(session, "tpu", path))
    if strategy == "gke":
        parts.append(get_part(session, "container", f"v1/{session.location(zone)}/clusters/{name}"))
    if strategy == "gce":
        root = f"compute/v1/projects/{session.config.project}"
        sku_hosts = _hosts_of(session, node.id)
        if sku_hosts == 1:
            parts.append(get_part(session, "compute", f"{root}/zones/{zone}/instances/{name}"))
        else:
            parts += _look_group(session, root, zone, name)
    merged = merge([p for p in parts if p and ours(p)])
    return merged[0] if merged else None


def ended_at(session: Session, node: Node) -> int | None:
    """Unix seconds at which the first part of a node was deleted, by Google's operations."""
    project, times = session.config.project, []
    places = node.tried or ((f"{node.strategy}:{node.zone}",) if node.zone else ())
    for strategy, _, zone in (p.partition(":") for p in places):
        if strategy == "gce":
            root = f"compute/v1/projects/{project}/zones/{zone}"
            query = {"filter": f"targetLink eq .*/{cloud_name(node.id)}.*"}
            pages = session.api.pages("compute", f"{root}/operations", query)
            operations = [o for page in pages for o in page.get("items", [])]
        elif strategy in ("node", "queued", "flex"):
            pages = session.api.pages("tpu", f"v2/{session.location(zone)}/operations")
            operations = [o for page in pages for o in page.get("operations", [])]
        else:
            continue
        times += [responses.deletion(o, cloud_name(node.id)) for o in operations]
    known = [t for t in times if t is not None and t >= node.created]
    return min(known) if known else None


def _hosts_of(session: Session, node_id: str) -> int:
    from gaia import hardware

    record = session.store.get(node_id)
    sku = hardware.skus().get(record.sku) if record else None
    return sku.hosts if sku else 0


def _look_group(session: Session, root: str, zone: str, name: str) -> list[Node | None]:
    """A single instance or a group: without a record both are asked for."""
    parts = [get_part(session, "compute", f"{root}/zones/{zone}/instances/{name}")]
    for kind, place in (
        ("instanceGroupManagers", f"zones/{zone}"),
        ("instanceTemplates", "global"),
        ("resourcePolicies", f"regions/{region_of(zone)}"),
    ):
        parts.append(get_part(session, "compute", f"{root}/{place}/{kind}/{name}"))
    if parts[1]:
        query = {"filter": f"name eq {name}-.*"}
        for page in session.api.pages("compute", f"{root}/zones/{zone}/instances", query):
            parts += [responses.instance(r, session.ssh_user) for r in page.get("items", [])]
    return parts


def get_part(session: Session, service: str, path: str) -> Node | None:
    """A resource as a part of a node; None where it does not exist or is not ours."""
    try:
        raw = session.api.get(service, path)
    except (Elsewhere, StockOut):
        return None  # a zone that is closed to the project holds nothing of ours
    return None if raw is None else part_of(raw, path, session.ssh_user)


def list_nodes(session: Session) -> list[Node]:
    """Nodes, queued resources, instances, groups, loose disks: all zones, by label."""
    project = session.config.project
    root, everywhere = f"compute/v1/projects/{project}", f"projects/{project}/locations/-"
    labelled, named = {"filter": "labels.gml=1"}, {"filter": "name eq gml-.*"}
    calls: list[tuple[str, str, dict[str, str], str]] = [
        ("tpu", f"v2/{everywhere}/nodes", {}, "nodes"),
        ("tpu", f"v2alpha1/{everywhere}/queuedResources", {}, "queuedResources"),
        ("compute", f"{root}/aggregated/instances", labelled, "instances"),
        ("compute", f"{root}/aggregated/instanceGroupManagers", named, "instanceGroupManagers"),
        ("compute", f"{root}/aggregated/disks", labelled, "disks"),
        ("compute", f"{root}/global/instanceTemplates", named, "instanceTemplates"),
        ("compute", f"{root}/aggregated/resourcePolicies", named, "resourcePolicies"),
        ("container", f"v1/{everywhere}/clusters", {}, "clusters"),
    ]
    parts: list[Node] = []
    problems: list[str] = []
    lock = threading.Lock()

    def look(service: str, path: str, params: dict[str, str], kind: str) -> None:
        try:
            pages = session.api.pages(service, path, params)
        except Denied as error:
            # An API that was never enabled holds nothing; anything else might.
            if "not enabled" not in error.problem:
                with lock:
                    problems.append(str(error))
            return
        except GmlError as error:
            with lock:
                problems.append(str(error))
            return
        with lock:
            for page in pages:
                problems.extend(f"{u} unreachable" for u in unreachable(page))
                parts.extend(
                    p
                    for raw in items(page, kind)
                    if (p := part_of(raw, raw["_path"], session.ssh_user))
                )

    in_parallel([lambda c=c: look(*c) for c in calls])
    nodes = merge(parts)
    if problems:
        raise Incomplete("; ".join(dict.fromkeys(problems)), seen=nodes)
    return nodes


def find(session: Session, node: Node) -> Node | None:
    """Everything of the node, by name in the places that were tried, else by label.

    What it has in another project than the current one is looked at by its own full name.
    """
    places = node.tried or ((f"{node.strategy}:{node.zone}",) if node.zone else ())
    if not places and node.resources:
        # A leftover without a zone, such as a policy: look at it by its own name.
        asked = (get_part(session, *r.split(":", 1)) for r in node.resources)
        merged = merge([p for p in asked if p and node.holds(p)])
        return merged[0] if merged else None
    if not places:
        return next((n for n in list_nodes(session) if node.holds(n)), None)
    parts = [p for place in places if (p := look(session, node, place))]
    here = f"/projects/{session.config.project}/"
    away = (get_part(session, *r.split(":", 1)) for r in node.resources if here not in r)
    parts += [p for p in away if p and node.holds(p)]
    merged = merge(parts)
    return merged[0] if merged else None

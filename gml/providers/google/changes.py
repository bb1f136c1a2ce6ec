"""Deletes what exists of a node at Google, and moves its deadline."""

from __future__ import annotations

from gml.durations import format_duration
from gml.errors import Unavailable, UsageError
from gml.http import ApiError
from gml.model import ApiRequest, Node
from gml.progress import Progress, silent
from gml.providers.google import requests
from gml.providers.google.failures import translate
from gml.providers.google.parts import part_of
from gml.providers.google.resources import find
from gml.providers.google.session import Session


def delete_requests(node: Node) -> list[ApiRequest]:
    """DELETEs of the known resources; groups and queued resources take their machines along."""
    owners = [r for r in node.resources if _owns(r)]
    machines = [r for r in node.resources if not _owns(r) and not _late(r)]
    late = [r for r in node.resources if _late(r)]
    return [requests.delete_request(r) for r in (owners or machines) + late]


def delete(session: Session, node: Node, progress: Progress = silent) -> None:
    """Deletes until nothing of the node answers any more."""
    pauses = session.pauses()
    waited = 0.0
    while True:
        # Looked at before each deletion: a name may be another owner's by now.
        remaining = find(session, node)
        others = [r for r in node.resources if remaining is None and _is_there(session, node, r)]
        if remaining is None and not others:
            return
        left = remaining if remaining else node.replace(resources=tuple(others))
        for request in delete_requests(left):
            _delete_one(session, request)
        progress(f"waiting for Google to remove {node.id} ({left.state or 'leftovers'})")
        waited += next(pauses)
        if waited > session.patience_s:
            raise Unavailable(
                f"{node.id} still exists after {format_duration(waited)}",
                f"look with `gml node show {node.id}`; `gml reap` goes on trying",
            )


def _is_there(session: Session, node: Node, resource: str) -> bool:
    """Tells whether a recorded resource exists, and is not a later one of another owner."""
    service, path = resource.split(":", 1)
    raw = session.api.get(service, path)
    part = part_of(raw, path) if raw is not None else None
    return raw is not None and (part is None or node.holds(part))


def _delete_one(session: Session, request: ApiRequest) -> None:
    try:
        session.api.send(request)
    except ApiError as error:
        # 404: gone. 409, 412: busy creating or deleting, which the next round will see.
        if error.status not in (404, 409, 412):
            raise translate(error, session.config) from None
    except UsageError:
        # "not in a state to be deleted": the next round asks again, until patience ends.
        return


def deadline_requests(session: Session, node: Node, deadline: int | None) -> list[ApiRequest]:
    """Label changes on every machine of the node, or on the cluster that it is.

    Raises:
        UsageError: nothing of it carries an end that could move, such as what waits in a queue.
    """
    value = "none" if deadline is None else str(deadline)
    moved = {"gml-deadline": value, **({"gml-up": str(node.up)} if node.up else {})}
    requests = []
    for resource in node.resources:
        service, path = resource.split(":", 1)
        if "/nodes/" in path:
            raw = session.api.get(service, path) or {}
            body = {
                "labels": {**(raw.get("labels") or {}), **moved},
                "metadata": {**(raw.get("metadata") or {}), "gml-deadline": value},
            }
            params = {"updateMask": "labels,metadata"}
            requests.append(ApiRequest(service, "PATCH", path, params, body))
        elif "/instances/" in path:
            raw = session.api.get(service, path) or {}
            body = {
                "labels": {**(raw.get("labels") or {}), **moved},
                "labelFingerprint": raw.get("labelFingerprint", ""),
            }
            requests.append(ApiRequest(service, "POST", f"{path}/setLabels", {}, body))
        elif "/clusters/" in path:
            raw = session.api.get(service, path) or {}
            body = {
                "resourceLabels": {**(raw.get("resourceLabels") or {}), **moved},
                "labelFingerprint": raw.get("labelFingerprint", ""),
            }
            requests.append(ApiRequest(service, "POST", f"{path}:setResourceLabels", {}, body))
    if not requests:
        raise UsageError(
            f"{node.id} has no machine whose end could move ({node.state or node.phase})",
            f"look with `gml node show {node.id}`; it ends when its labels say",
        )
    return requests


def set_deadline(session: Session, node: Node, deadline: int | None) -> Node:
    """Moves the labels of every machine or cluster, and of TPU nodes the metadata too.

    The time at which the node came out of its queue is kept beside the deadline.
    """
    live = find(session, node)
    if live is None:
        raise Unavailable(f"{node.id} is gone", "see `gml ls --refresh`")
    for request in deadline_requests(session, live.replace(up=node.up or live.up), deadline):
        try:
            operation = session.api.send(request)
        except ApiError as error:
            raise translate(error, session.config) from None
        session.wait_operation(request, operation)
    return node.replace(deadline=deadline)


def _owns(resource: str) -> bool:
    kinds = ("/queuedResources/", "/instanceGroupManagers/", "/clusters/")
    return any(kind in resource for kind in kinds)


def _late(resource: str) -> bool:
    """Tells what may go only after the group that uses it."""
    return "/instanceTemplates/" in resource or "/resourcePolicies/" in resource

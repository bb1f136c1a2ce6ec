"""Makes a node at Google: sends the requests, waits, and reads back what came of them."""

from __future__ import annotations

from typing import Any

from gml.clock import service_clock
from gml.durations import format_duration
from gml.errors import GmlError, RateLimited, StockOut, Unavailable, Unsafe, UsageError
from gml.http import ApiError
from gml.model import ApiRequest, CreateSpec, Node, Offer
from gml.progress import Progress, silent
from gml.providers.base import check_free
from gml.providers.google import responses
from gml.providers.google.failures import quota_error, translate
from gml.providers.google.parts import part_of
from gml.providers.google.requests import cloud_name, create_requests
from gml.providers.google.resources import look
from gml.providers.google.session import Session
from gml.remote.ssh import Ssh

_KINDS = {
    "nodes": "TPU node",
    "queuedResources": "queued resource",
    "instances": "instance",
    "resourcePolicies": "workload policy",
    "instanceTemplates": "instance template",
    "instanceGroupManagers": "instance group",
}


def create(session: Session, spec: CreateSpec, offer: Offer, progress: Progress = silent) -> Node:
    """Sends the requests, waits for the operation, and reads back what came of it."""
    try:
        requests = create_requests(session.config, spec, offer)
    except GmlError as error:
        error.nothing_made = True
        raise
    for number, request in enumerate(requests):
        try:
            operation = _post(session, request, spec)
        except GmlError as error:
            error.nothing_made = number == 0 and (error.refused or error.nothing_made)
            raise
        if operation is not None:
            kind = _KINDS[request.path.rsplit("/", 1)[-1]]
            progress(f"waiting for Google to make the {kind}")
            session.wait_operation(request, operation)
    if offer.strategy in ("queued", "flex"):
        _wait_queued(session, spec, offer, progress)
    node = _wait_ready(session, spec, offer, progress)
    if offer.strategy in ("gce", "flex"):
        node = _verify_limit(session, node, spec, offer)
    _pin_host_keys(session, node, offer)
    return node


def _post(session: Session, request: ApiRequest, spec: CreateSpec) -> dict[str, Any] | None:
    """One create call: its operation, or None where this very create has made it already."""
    try:
        return session.api.send(request)
    except ApiError as error:
        if error.status != 409:
            raise translate(error, session.config) from None
        name = cloud_name(spec.id)
        existing = session.api.get(request.service, f"{request.path}/{name}")
        part = part_of(existing, f"{request.path}/{name}") if existing is not None else None
        try:
            if existing is not None and (part is None or part.id != spec.id):
                text = f"{name} exists in {request.path} and is not ours"
                raise UsageError(text, "take another --name") from None
            check_free([part] if part else [], spec)
        except UsageError as taken:
            taken.nothing_made = True
            raise
        return None  # an answer got lost, or an earlier create was killed


def _wait_queued(session: Session, spec: CreateSpec, offer: Offer, progress: Progress) -> None:
    version = "v2alpha1" if offer.strategy == "flex" else "v2"
    path = f"{version}/{session.location(offer.zone)}/queuedResources/{cloud_name(spec.id)}"
    waited = 0.0
    for pause in session.pauses(15.0):
        waited += pause
        try:
            raw = session.api.get("tpu", path)
        except RateLimited:
            if waited > spec.wait_s:
                raise
            continue  # asked again: its place in the queue stays
        if raw is None:
            raise StockOut(f"the queued resource in {offer.zone} is gone", "try again")
        state = raw.get("state") or {}
        name = state.get("state", "")
        progress(f"waiting in the queue of {offer.zone} ({name.lower()})")
        if name == "ACTIVE":
            return
        if name in ("FAILED", "SUSPENDED", "SUSPENDING"):
            error = (state.get("failedData") or {}).get("error") or {}
            text = error.get("message", f"it is {name.lower()}")
            if "uota" in text:
                raise quota_error(text, session.config)
            raise StockOut(f"queue in {offer.zone}: {text[:250]}", "try another zone")
        if waited > spec.wait_s:
            raise StockOut(
                f"no capacity in {offer.zone} within {format_duration(spec.wait_s)}",
                "wait longer with --wait, or try another zone",
            )


def _wait_ready(session: Session, spec: CreateSpec, offer: Offer, progress: Progress) -> Node:
    assert spec.sku is not None
    waited = 0.0
    for pause in session.pauses():
        waited += pause
        try:
            node = look(session, spec, f"{offer.strategy}:{offer.zone}")
        except RateLimited:
            if waited > session.patience_s:
                raise
            continue  # asked again: it comes up all the same
        if node is None:
            raise StockOut(f"{spec.id} did not come up in {offer.zone}", "try another zone")
        if node.dead():
            raise StockOut(f"{spec.id} is {node.state} in {offer.zone}", "try another zone")
        if node.state == "ready" and len(node.hosts) >= spec.sku.hosts:
            return node
        progress(f"waiting for {spec.id} in {offer.zone} ({node.state})")
        if waited > session.patience_s:
            raise Unavailable(f"{spec.id} was not ready after {format_duration(waited)}")
    raise AssertionError("unreachable")


def _verify_limit(session: Session, node: Node, spec: CreateSpec, offer: Offer) -> Node:
    """The provider's own end must stand in its answer, or the create has failed."""
    if offer.strategy == "flex":
        path = f"v2alpha1/{session.location(offer.zone)}/queuedResources/{cloud_name(spec.id)}"
        raw = session.api.get("tpu", path) or {}
        length = responses.duration((raw.get("runDuration") or {}).get("maxRunDuration"))
        ends = responses.timestamp((raw.get("runDuration") or {}).get("terminationTime"))
        # The clock of a flex-start run begins when it starts, which was not after now.
        limit = node.limit or ends or (round(service_clock.now()) + length if length else None)
    else:
        limit = node.limit
    if limit is None:
        raise Unsafe(
            f"Google's answer for {spec.id} has no time limit",
            "use another --strategy; the half-made machine is being removed",
        )
    return node.replace(limit=limit)


def _pin_host_keys(session: Session, node: Node, offer: Offer) -> None:
    """Host keys from guest attributes where the agent has published them; else first use."""
    if offer.strategy != "gce" or not node.hosts:
        return
    ssh = Ssh(session.config, session.store)
    machines = [r for r in node.resources if "/instances/" in r]
    for index, resource in enumerate(machines):
        path = resource.split(":", 1)[1]
        try:
            raw = session.api.get(
                "compute", f"{path}/getGuestAttributes", {"queryPath": "hostkeys/"}
            )
        except GmlError:
            return
        items = ((raw or {}).get("queryValue") or {}).get("items") or []
        keys = [f"{i['key']} {i['value']}" for i in items if i.get("key") and i.get("value")]
        if keys:
            ssh.pin(node, index, keys)

"""Clusters, where one slice is not enough: GKE with pools that scale to zero.

No scheduler of our own: JobSet (`gml.jobset`) starts all hosts of all slices together and restarts
them together; Kueue may queue them. The cluster carries the same labels as a node, so `gml reap`
ends it too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gaia.hardware import Sku
from gml import budget
from gml.config import Config
from gml.durations import parse_duration, parse_timeout
from gml.errors import GmlError, Unavailable, UsageError
from gml.fleet import Fleet
from gml.http import ApiError
from gml.model import ApiRequest, CreateSpec, Node, check_id, parse_sku
from gml.nodes.signals import terminate_is_interrupt
from gml.nodes.undo import undo
from gml.options import option
from gml.places import region_of
from gml.progress import Progress
from gml.providers.base import check_free
from gml.providers.google.failures import translate
from gml.providers.google.parts import part_of
from gml.providers.google.provider import GoogleProvider
from gml.providers.google.requests import cloud_name
from gml.providers.google.signin import SCOPE


@dataclass(frozen=True)
class ClusterRequest:
    """A cluster that a user asks for. `max_slices` bounds what autoscaling may make."""

    instance_type: str = option(
        "", "--instance-type", "-t", help="Type of one slice, for example v6e-16."
    )
    timeout_s: int = option(
        0,
        "--timeout",
        help="Lifetime of the cluster, for example 3hr. Required.",
        typed=str,
        typed_default="",
        parse=lambda text: parse_timeout(text) if text else 0,
    )
    zone: str = option("", "--zone", help="Zone of the accelerators; default: the type's first.")
    max_slices: int = option(
        1, "--max-slices", help="Maximum number of slices at once.", limits={"min": 1, "max": 64}
    )
    spot: bool = option(False, "--spot", help="Rent the accelerators at the spot price.")
    run_s: int = option(
        86400,
        "--max-run",
        help="Longest run of a flex-start machine.",
        typed=str,
        typed_default="24h",
        parse=lambda text: parse_duration(text, "--max-run"),
    )
    flex: bool = option(
        True, "--flex/--no-flex", help="Make a flex-start pool instead of an on-demand one."
    )
    name: str = ""

    @property
    def sku(self) -> Sku:
        """Facts about the type; raises UsageError."""
        return parse_sku(self.instance_type)

    def completed(self, config: Config) -> ClusterRequest:
        """The request with a zone and a lifetime; raises UsageError for what can't be made."""
        if not self.instance_type:
            raise UsageError("--instance-type is missing", "see `gml node list-types`")
        sku = self.sku
        if not sku.gce_machine_type:
            raise UsageError(
                f"{self.instance_type!r} is not sold by Google", "see `gml node list-types`"
            )
        zone = self.zone or (sku.flex_zones or sku.zones)[0]
        if region_of(zone) == zone:
            raise UsageError(f"--zone {zone!r} is not a zone", f"for example {sku.zones[0]}")
        timeout_s = self.timeout_s or parse_timeout("", config.default_timeout)
        return dataclasses.replace(self, zone=zone, timeout_s=timeout_s)


def create_call(config: Config, request: ClusterRequest, spec: CreateSpec) -> ApiRequest:
    """The cluster with a small system pool and one accelerator pool from zero."""
    sku = request.sku
    account = config.google.service_account
    machine: dict[str, Any] = {
        "machineType": sku.gce_machine_type,
        "oauthScopes": [SCOPE],
        "resourceLabels": spec.labels(),
        "labels": {"gml-pool": sku.name.lower()},
    }
    if account != "default":
        machine["serviceAccount"] = account
    if request.spot:
        machine["spot"] = True
    elif request.flex:
        machine["flexStart"] = True
        machine["maxRunDuration"] = f"{request.run_s}s"
    pool: dict[str, Any] = {
        "name": sku.name.lower(),
        "initialNodeCount": 0,
        "locations": [request.zone],
        "config": machine,
        "autoscaling": {
            "enabled": True,
            "totalMinNodeCount": 0,
            "totalMaxNodeCount": sku.hosts * request.max_slices,
            "locationPolicy": "ANY",
        },
        "management": {"autoRepair": False, "autoUpgrade": True},
    }
    if sku.hosts > 1:
        pool["placementPolicy"] = {"type": "COMPACT", "tpuTopology": sku.topology}
    body = {
        "cluster": {
            "name": cloud_name(spec.id),
            "network": config.google.network,
            "resourceLabels": spec.labels(),
            "releaseChannel": {"channel": "RAPID"},
            "workloadIdentityConfig": {"workloadPool": f"{config.project}.svc.id.goog"},
            "nodePools": [
                {
                    "name": "system",
                    "initialNodeCount": 1,
                    "locations": [request.zone],
                    "config": {"machineType": "e2-standard-4", "oauthScopes": [SCOPE]},
                },
                pool,
            ],
        }
    }
    parent = f"projects/{config.project}/locations/{region_of(request.zone)}"
    return ApiRequest("container", "POST", f"v1/{parent}/clusters", {}, body)


def spec_of(fleet: Fleet, request: ClusterRequest) -> CreateSpec:
    """Id, owner and deadline of the cluster."""
    now = round(fleet.now())
    return CreateSpec(
        id=check_id(request.name),
        owner=fleet.config.owner,
        sku=request.sku,
        sku_name="cluster",
        created=now,
        deadline=now + request.timeout_s,
        spot=request.spot,
    )


def create(fleet: Fleet, request: ClusterRequest, progress: Progress) -> Node:
    """Makes the cluster under the same discipline as a node: intent first, undone on failure."""
    spec = spec_of(fleet, request)
    provider = fleet.provider("google")
    assert isinstance(provider, GoogleProvider)
    provider.sign_in()
    price = request.sku.price_per_hour(
        spot=request.spot, region=region_of(request.zone), provider="google"
    )
    most = None if price is None else price * request.max_slices
    place = region_of(request.zone)
    with fleet.store.lock(spec.id), terminate_is_interrupt():
        record = fleet.store.get(spec.id)
        if record and record.phase == "up":
            raise UsageError(f"{spec.id} exists already", f"use `gml cluster run {spec.id}`")
        if record and (live := provider.find(record)):
            # Left by a killed create, and taken over with the times in its labels.
            deadline = live.deadline or spec.deadline
            spec = dataclasses.replace(spec, created=live.created, deadline=deadline)
        intent = Node(
            id=spec.id,
            provider="google",
            owner=spec.owner,
            sku="cluster",
            zone=place,
            strategy="gke",
            phase="intent",
            deadline=spec.deadline,
            created=spec.created,
            timeout_s=request.timeout_s,
            tried=(f"gke:{place}",),
            price=most,
        )
        with budget.reserving(fleet):
            budget.check(fleet, f"the cluster {spec.id}", most, request.timeout_s, spec.id)
            fleet.store.put(intent)
        try:
            _post(provider, create_call(fleet.config, request, spec), spec, progress)
            node = _wait_running(provider, intent, progress)
            return fleet.store.put(
                node.replace(phase="up", timeout_s=request.timeout_s, tried=intent.tried)
            )
        except BaseException as error:
            if record is None and getattr(error, "nothing_made", False):
                intent = intent.replace(tried=())
            undo(fleet, intent, provider, error, progress)
            raise


def _post(provider: GoogleProvider, call: ApiRequest, spec: CreateSpec, progress: Progress) -> None:
    try:
        provider.api.send(call)
    except GmlError as error:
        error.nothing_made = error.refused
        raise
    except ApiError as error:
        path = f"{call.path}/{cloud_name(spec.id)}"
        existing = provider.api.get("container", path) if error.status == 409 else None
        part = part_of(existing, path) if existing else None
        if part is None or part.id != spec.id:
            raise translate(error, provider.config) from None
        try:
            check_free([part], spec)
        except UsageError as taken:
            taken.nothing_made = True
            raise
    progress("waiting for Google to make the cluster (5-10 minutes)")


def _wait_running(provider: GoogleProvider, intent: Node, progress: Progress) -> Node:
    waited = 0.0
    for pause in provider.session.pauses(15.0):
        node = provider.find(intent)
        if node is None or node.dead():
            raise Unavailable(f"the cluster {intent.id} did not come up", "see the GKE console")
        if node.state == "ready":
            return node
        waited += pause
        progress(f"waiting for the cluster in {intent.zone} ({node.state})")
        if waited > 2 * provider.session.patience_s:
            raise Unavailable(f"the cluster {intent.id} was not ready in time")
    raise AssertionError("unreachable")

"""Clusters, where one slice is not enough: GKE with pools that scale to zero.

No scheduler of our own: JobSet (`gml.jobset`) starts all hosts of all slices together and restarts
them together; Kueue may queue them. The cluster carries the same labels as a node, so `gml reap`
ends it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gaia.hardware import Sku
from gml.config import Config
from gml.errors import GmlError, Unavailable, UsageError
from gml.http import ApiError
from gml.model import ApiRequest, CreateSpec, Node, check_id
from gml.nodes import Manager, terminate_is_interrupt
from gml.providers.base import Tick
from gml.providers.google import GoogleProvider
from gml.providers.google_api import translate, wait_pauses
from gml.providers.google_bodies import cloud_name, region

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclass(frozen=True)
class ClusterWish:
    """What `gml cluster create` was asked for. `max_slices` bounds what autoscaling may make."""

    name: str
    sku: Sku
    zone: str
    timeout_s: int
    max_slices: int = 1
    spot: bool = False
    flex: bool = True
    run_s: int = 86400


def create_request(config: Config, wish: ClusterWish, spec: CreateSpec) -> ApiRequest:
    """The cluster with a small system pool and one accelerator pool from zero."""
    sku = wish.sku
    account = config.google.service_account
    machine: dict[str, Any] = {
        "machineType": sku.gce_machine_type,
        "oauthScopes": [SCOPE],
        "resourceLabels": spec.labels(),
        "labels": {"gml-pool": sku.name.lower()},
    }
    if account != "default":
        machine["serviceAccount"] = account
    if wish.spot:
        machine["spot"] = True
    elif wish.flex:
        machine["flexStart"] = True
        machine["maxRunDuration"] = f"{wish.run_s}s"
    pool: dict[str, Any] = {
        "name": sku.name.lower(),
        "initialNodeCount": 0,
        "locations": [wish.zone],
        "config": machine,
        "autoscaling": {
            "enabled": True,
            "totalMinNodeCount": 0,
            "totalMaxNodeCount": sku.hosts * wish.max_slices,
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
                    "locations": [wish.zone],
                    "config": {"machineType": "e2-standard-4", "oauthScopes": [SCOPE]},
                },
                pool,
            ],
        }
    }
    parent = f"projects/{config.project}/locations/{region(wish.zone)}"
    return ApiRequest("container", "POST", f"v1/{parent}/clusters", {}, body)


def spec_of(manager: Manager, wish: ClusterWish) -> CreateSpec:
    """Id, owner and deadline of the cluster."""
    now = round(manager.now())
    return CreateSpec(
        id=check_id(wish.name),
        owner=manager.config.owner,
        sku=wish.sku,
        sku_name="cluster",
        created=now,
        deadline=now + wish.timeout_s,
        spot=wish.spot,
    )


def create(manager: Manager, wish: ClusterWish, tick: Tick) -> Node:
    """Makes the cluster under the same discipline as a node: intent first, undone on failure."""
    spec = spec_of(manager, wish)
    provider = manager.provider("google")
    assert isinstance(provider, GoogleProvider)
    provider.sign_in()
    request = create_request(manager.config, wish, spec)
    place = region(wish.zone)
    with manager.store.lock(spec.id), terminate_is_interrupt():
        record = manager.store.get(spec.id)
        if record and record.phase == "up":
            raise UsageError(f"{spec.id} exists already", f"use `gml cluster run {spec.id}`")
        intent = manager.store.put(
            Node(
                id=spec.id,
                provider="google",
                owner=spec.owner,
                sku="cluster",
                zone=place,
                strategy="gke",
                phase="intent",
                deadline=spec.deadline,
                created=spec.created,
                timeout_s=wish.timeout_s,
                tried=(f"gke:{place}",),
            )
        )
        try:
            _post(provider, request, spec, tick)
            node = _wait_running(provider, intent, tick)
            return manager.store.put(
                node.replace(phase="up", timeout_s=wish.timeout_s, tried=intent.tried)
            )
        except BaseException as error:
            if record is None and getattr(error, "nothing_made", False):
                manager.store.put(intent.replace(tried=()))
            manager.undo(spec.id, provider, error, tick)
            raise


def _post(provider: GoogleProvider, request: ApiRequest, spec: CreateSpec, tick: Tick) -> None:
    try:
        provider.api.send(request)
    except GmlError as error:
        error.nothing_made = error.refused
        raise
    except ApiError as error:
        found = provider.api.get("container", f"{request.path}/{cloud_name(spec.id)}")
        labels = (found or {}).get("resourceLabels") or {}
        if error.status != 409 or labels.get("gml-id") != spec.id:
            raise translate(error, provider.config) from None
        if labels.get("gml-owner") != spec.owner:
            raise UsageError(f"{spec.id} is another owner's", "take another name") from None
    tick("waiting for Google to make the cluster (5-10 minutes)")


def _wait_running(provider: GoogleProvider, intent: Node, tick: Tick) -> Node:
    waited = 0.0
    for pause in wait_pauses(min(1.0, provider.config.backoff_s), 15.0):
        node = provider.find(intent)
        if node is None or node.dead():
            raise Unavailable(f"the cluster {intent.id} did not come up", "see the GKE console")
        if node.state == "ready":
            return node
        waited += pause
        tick(f"waiting for the cluster in {intent.zone} ({node.state})")
        if waited > 2 * provider.patience_s:
            raise Unavailable(f"the cluster {intent.id} was not ready in time")
    raise AssertionError("unreachable")

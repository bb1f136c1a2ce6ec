"""The exact requests by which Google machines are made, changed and deleted. Pure functions.

Checked in the tests against Google's published discovery schemas, field by field.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from gml.config import Config
from gml.durations import format_duration
from gml.errors import UsageError
from gml.model import ApiRequest, CreateSpec, Offer
from gml.places import region_of
from gml.startup import startup_script, watchdog_config

# A job's grace and a late watchdog fit between our deadline and the provider's own limit.
MARGIN_S = 60
# What Google's own limit can be at most: flex-start queued resources, and instances.
MAX_FLEX_S = 7 * 86400
MAX_GCE_S = 120 * 86400
_NAMESPACE = uuid.UUID("6f0b6d0e-2a57-4f6e-9a57-7b1a6d1f3a55")


def cloud_name(node_id: str) -> str:
    """The name of everything that belongs to a node."""
    return f"gml-{node_id}"


def request_id(spec: CreateSpec, offer: Offer) -> str:
    """Google's idempotency key: the same create sent twice is one create."""
    place = f"{offer.strategy}/{offer.zone}"
    return str(uuid.uuid5(_NAMESPACE, f"{spec.id}/{spec.owner}/{place}/{spec.created}"))


def run_seconds(spec: CreateSpec, most_s: int, what: str) -> int:
    """Time limit to ask Google for, in seconds; raises UsageError above `most_s`."""
    length = spec.run_s or spec.timeout_s
    wanted = max(spec.limit_s, length)
    if wanted > most_s:
        option = "--limit" if spec.limit_s > length else "--timeout"
        raise UsageError(
            f"{option} {format_duration(wanted)} is longer than Google lets {what} run",
            f"take at most {format_duration(most_s)}, or another --strategy",
        )
    return min(most_s, max(wanted, length + MARGIN_S))


def create_requests(config: Config, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
    """All mutating calls of a create, in order."""
    builders = {"node": _node, "queued": _queued, "flex": _flex, "gce": _gce}
    return builders[offer.strategy](config, spec, offer)


def _parent(config: Config, zone: str) -> str:
    return f"projects/{config.project}/locations/{zone}"


def _metadata(config: Config, spec: CreateSpec, delete: list[dict[str, Any]]) -> dict[str, str]:
    watchdog = watchdog_config(
        spec, delete=delete, use_metadata=True, metadata=config.endpoint("metadata")
    )
    return {
        "ssh-keys": f"{spec.user}:{spec.public_key}",
        # With OS Login the key above would be ignored.
        "enable-oslogin": "FALSE",
        "gml-deadline": str(spec.deadline),
        "startup-script": startup_script(watchdog),
    }


def _tpu_node(config: Config, spec: CreateSpec, *delete_paths: str) -> dict[str, Any]:
    assert spec.sku is not None
    network: dict[str, Any] = {
        "network": config.google.network,
        "enableExternalIps": not spec.internal_ip,
    }
    if config.google.subnetwork:
        network["subnetwork"] = config.google.subnetwork
    account: dict[str, Any] = {"scope": ["https://www.googleapis.com/auth/cloud-platform"]}
    if config.google.service_account != "default":
        account["email"] = config.google.service_account
    base = config.endpoint("tpu")
    delete = [{"method": "DELETE", "url": f"{base}/{path}"} for path in delete_paths]
    return {
        "acceleratorType": spec.sku.tpu_type,
        "runtimeVersion": spec.runtime or spec.sku.runtime,
        "networkConfig": network,
        "serviceAccount": account,
        "metadata": _metadata(config, spec, delete),
        "labels": spec.labels(),
    }


def _node(config: Config, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
    parent, name = _parent(config, offer.zone), cloud_name(spec.id)
    body = _tpu_node(config, spec, f"v2/{parent}/nodes/{name}")
    if spec.spot:
        body["schedulingConfig"] = {"spot": True}
    elif spec.reservation:
        body["schedulingConfig"] = {"reserved": True}
    return [ApiRequest("tpu", "POST", f"v2/{parent}/nodes", {"nodeId": name}, body)]


def _queued(config: Config, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
    parent, name = _parent(config, offer.zone), cloud_name(spec.id)
    # A service account that may not delete the queued resource may still delete the node.
    paths = (f"v2/{parent}/queuedResources/{name}?force=true", f"v2/{parent}/nodes/{name}")
    node = _tpu_node(config, spec, *paths)
    body: dict[str, Any] = {
        "tpu": {"nodeSpec": [{"parent": parent, "nodeId": name, "node": node}]},
        "queueingPolicy": {"validUntilDuration": f"{spec.wait_s}s"},
    }
    if spec.reservation:
        body["reservationName"] = f"{parent}/reservations/{spec.reservation}"
        body["guaranteed"] = {}
    elif spec.spot:
        body["spot"] = {}
    params = {"queuedResourceId": name, "requestId": request_id(spec, offer)}
    return [ApiRequest("tpu", "POST", f"v2/{parent}/queuedResources", params, body)]


def _flex(config: Config, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
    parent, name = _parent(config, offer.zone), cloud_name(spec.id)
    paths = (f"v2alpha1/{parent}/queuedResources/{name}?force=true", f"v2/{parent}/nodes/{name}")
    node = _tpu_node(config, spec, *paths)
    body = {
        "tpu": {"nodeSpec": [{"parent": parent, "nodeId": name, "node": node}]},
        "provisioningModel": "FLEX_START",
        "runDuration": {"maxRunDuration": f"{run_seconds(spec, MAX_FLEX_S, 'flex-start')}s"},
        "queueingPolicy": {"validUntilDuration": f"{spec.wait_s}s"},
    }
    params = {"queuedResourceId": name, "requestId": request_id(spec, offer)}
    return [ApiRequest("tpu", "POST", f"v2alpha1/{parent}/queuedResources", params, body)]


def _gce(config: Config, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
    assert spec.sku is not None
    if spec.sku.hosts > 1:
        return _gce_group(config, spec, offer)
    zone, name = offer.zone, cloud_name(spec.id)
    path = f"compute/v1/projects/{config.project}/zones/{zone}/instances"
    url = f"{config.endpoint('compute')}/{path}/{name}"
    body = {
        "name": name,
        "description": "made by gml",
        **_instance_properties(config, spec, url),
        "machineType": f"zones/{zone}/machineTypes/{spec.sku.gce_machine_type}",
    }
    return [ApiRequest("compute", "POST", path, {"requestId": request_id(spec, offer)}, body)]


def _gce_group(config: Config, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
    """A slice of several hosts: workload policy (topology), template, managed group."""
    assert spec.sku is not None
    zone, name, place = offer.zone, cloud_name(spec.id), region_of(offer.zone)
    root = f"compute/v1/projects/{config.project}"
    key = request_id(spec, offer)
    # Policies and groups carry no labels; their description does the same for `gml reap`.
    about = json.dumps(spec.labels(), sort_keys=True)
    group_path = f"{root}/zones/{zone}/instanceGroupManagers"
    properties = _instance_properties(
        config, spec, f"{config.endpoint('compute')}/{group_path}/{name}"
    )
    properties["machineType"] = spec.sku.gce_machine_type
    policy = {
        "name": name,
        "description": about,
        "workloadPolicy": {
            "type": "HIGH_THROUGHPUT",
            "acceleratorTopology": spec.sku.topology,
            "acceleratorTopologyMode": "AUTO_CONNECT",
        },
    }
    group = {
        "name": name,
        "description": about,
        "baseInstanceName": name,
        "targetSize": spec.sku.hosts,
        "instanceTemplate": f"projects/{config.project}/global/instanceTemplates/{name}",
        "resourcePolicies": {
            "workloadPolicy": f"projects/{config.project}/regions/{place}/resourcePolicies/{name}"
        },
        # Without this the group would replace machines that reached their time limit.
        "instanceLifecyclePolicy": {"defaultActionOnFailure": "DO_NOTHING"},
    }
    template = {"name": name, "description": about, "properties": properties}
    return [
        ApiRequest(
            "compute",
            "POST",
            f"{root}/regions/{place}/resourcePolicies",
            {"requestId": key},
            policy,
        ),
        ApiRequest(
            "compute", "POST", f"{root}/global/instanceTemplates", {"requestId": key}, template
        ),
        ApiRequest("compute", "POST", group_path, {"requestId": key}, group),
    ]


def _instance_properties(config: Config, spec: CreateSpec, delete_url: str) -> dict[str, Any]:
    assert spec.sku is not None
    tpu = spec.sku.chip.kind == "tpu"
    google = config.google
    image = (
        (google.image_project, google.image_family)
        if tpu
        else (google.gpu_image_project, google.gpu_image_family)
    )
    metadata = _metadata(config, spec, [{"method": "DELETE", "url": delete_url}])
    interface: dict[str, Any] = {"network": f"global/networks/{google.network}"}
    if not spec.internal_ip:
        interface["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT", "name": "External NAT"}]
    if google.subnetwork:
        interface["subnetwork"] = google.subnetwork
    body: dict[str, Any] = {
        "scheduling": {
            "provisioningModel": "SPOT" if spec.spot else "STANDARD",
            "instanceTerminationAction": "DELETE",
            "maxRunDuration": {"seconds": str(run_seconds(spec, MAX_GCE_S, "instances"))},
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        },
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": f"projects/{image[0]}/global/images/family/{image[1]}",
                    "diskSizeGb": str(spec.disk_gb),
                    "labels": spec.labels(),
                },
            }
        ],
        "networkInterfaces": [interface],
        "serviceAccounts": [
            {
                "email": google.service_account,
                "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
            }
        ],
        "metadata": {
            "items": [
                *({"key": k, "value": v} for k, v in metadata.items()),
                # The guest agent publishes its host keys there, so that we can pin them.
                {"key": "enable-guest-attributes", "value": "TRUE"},
            ]
        },
        "labels": spec.labels(),
    }
    if spec.reservation:
        body["scheduling"]["provisioningModel"] = "RESERVATION_BOUND"
        body["reservationAffinity"] = {
            "consumeReservationType": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [spec.reservation],
        }
    return body


def delete_request(resource: str) -> ApiRequest:
    """The DELETE of a resource such as `tpu:v2/projects/…/nodes/gml-x`."""
    service, path = resource.split(":", 1)
    params = {"force": "true"} if "/queuedResources/" in path else {}
    return ApiRequest(service, "DELETE", path, params)

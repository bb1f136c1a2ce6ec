"""Reads Google's answers: each resource becomes a (part of a) Node."""

from __future__ import annotations

import calendar
import json
import re
import time
from typing import Any

from gml.model import WAITING, Host, Node, node_from_labels

_QUEUE_STATES = {
    "ACTIVE": "active", "FAILED": "failed", "SUSPENDED": "suspended", "SUSPENDING": "suspended",
    "DELETING": "deleting",
}  # fmt: skip
_VM_STATES = {
    "RUNNING": "ready", "PROVISIONING": "creating", "STAGING": "creating",
    "TERMINATED": "terminated", "STOPPED": "terminated", "STOPPING": "terminated",
    "SUSPENDED": "suspended", "SUSPENDING": "suspended", "DEPROVISIONING": "deleting",
}  # fmt: skip


def timestamp(text: str | None) -> int | None:
    """Unix seconds of an RFC 3339 time; None for none or nonsense."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", text or "")
    if not match:
        return None
    seconds = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    if match[2] != "Z":
        sign = 1 if match[2][0] == "+" else -1
        seconds -= sign * (int(match[2][1:3]) * 3600 + int(match[2][4:6]) * 60)
    return seconds


def duration(text: str | None) -> int | None:
    """Seconds of `3600s`."""
    match = re.fullmatch(r"(\d+)(?:\.\d+)?s", text or "")
    return int(match[1]) if match else None


def deletion(operation: dict[str, Any], name: str) -> int | None:
    """Unix seconds at which an operation deleted a machine or request of this name; else None.

    A TPU operation tells it in its metadata (`verb`, `target`, `endTime`), one of Compute Engine in
    its own fields (`operationType`, `targetLink`, `endTime`). Machines of a group are NAME-0000, ….
    """
    about = operation.get("metadata") or operation
    target = str(about.get("target") or about.get("targetLink") or "").rsplit("/", 1)[-1]
    verb = str(about.get("verb") or about.get("operationType") or "").lower()
    deleted = "delete" in verb or "preempted" in verb
    ours = re.fullmatch(rf"{re.escape(name)}(?:-\d+)?", target) is not None
    return timestamp(about.get("endTime")) if deleted and ours else None


def tpu_node(raw: dict[str, Any], user: str) -> Node | None:
    """A v2 or v2alpha1 node."""
    name = raw.get("name", "")
    state = str(raw.get("state", "")).lower()
    hosts = tuple(
        Host(
            address=(e.get("accessConfig") or {}).get("externalIp") or e.get("ipAddress", ""),
            internal=e.get("ipAddress", ""),
            port=ssh_port(raw),
            user=user,
        )
        for e in raw.get("networkEndpoints", [])
    )
    return node_from_labels(
        raw.get("labels") or {},
        provider="google",
        zone=_part(name, "locations"),
        state={"stopped": "terminated", "stopping": "terminated"}.get(state, state),
        strategy="queued" if raw.get("queuedResource") else "node",
        hosts=hosts if state == "ready" else (),
        resources=(f"tpu:v2/{name}",),
        limit=timestamp((raw.get("schedulingConfig") or {}).get("terminationTimestamp")),
    )


def queued_resource(raw: dict[str, Any]) -> Node | None:
    """A queued resource; its labels are those of the node that it asks for."""
    name = raw.get("name", "")
    specs = (raw.get("tpu") or {}).get("nodeSpec") or [{}]
    state = str((raw.get("state") or {}).get("state", ""))
    flex = raw.get("provisioningModel") == "FLEX_START" or "runDuration" in raw
    version = "v2alpha1" if flex else "v2"
    return node_from_labels(
        (specs[0].get("node") or {}).get("labels") or {},
        provider="google",
        zone=_part(name, "locations"),
        state=_QUEUE_STATES.get(state, WAITING),
        strategy="flex" if flex else "queued",
        resources=(f"tpu:{version}/{name}",),
    )


def instance(raw: dict[str, Any], user: str) -> Node | None:
    """A Compute Engine instance."""
    zone = str(raw.get("zone", "")).rsplit("/", 1)[-1]
    interface = (raw.get("networkInterfaces") or [{}])[0]
    access = (interface.get("accessConfigs") or [{}])[0]
    state = _VM_STATES.get(str(raw.get("status", "")), "creating")
    host = Host(
        address=access.get("natIP") or interface.get("networkIP", ""),
        internal=interface.get("networkIP", ""),
        port=ssh_port(raw),
        user=user,
    )
    scheduling = (raw.get("resourceStatus") or {}).get("scheduling") or {}
    return node_from_labels(
        raw.get("labels") or {},
        provider="google",
        zone=zone,
        state=state,
        strategy="gce",
        hosts=(host,) if state == "ready" and host.address else (),
        resources=(f"compute:{self_path(raw, 'instances', f'zones/{zone}')}",),
        limit=timestamp(scheduling.get("terminationTimestamp")),
    )


def described(raw: dict[str, Any], kind: str, place: str, state: str) -> Node | None:
    """A group, template or policy, which carry our labels as JSON in their description."""
    try:
        labels = json.loads(raw.get("description") or "")
    except ValueError:
        return None
    if not isinstance(labels, dict):
        return None
    return node_from_labels(
        {str(k): str(v) for k, v in labels.items()},
        provider="google",
        zone=place.split("/", 1)[1] if place.startswith("zones/") else "",
        state=state,
        strategy="gce",
        resources=(f"compute:{self_path(raw, kind, place)}",),
    )


def disk(raw: dict[str, Any]) -> Node | None:
    """A disk with our labels; in use it belongs to its instance and goes with it."""
    if raw.get("users"):
        return None
    zone = str(raw.get("zone", "")).rsplit("/", 1)[-1]
    return node_from_labels(
        raw.get("labels") or {},
        provider="google",
        zone=zone,
        state="leftover",
        strategy="gce",
        resources=(f"compute:{self_path(raw, 'disks', f'zones/{zone}')}",),
    )


def cluster(raw: dict[str, Any], path: str) -> Node | None:
    """A GKE cluster with our labels. Its pools scale to zero; the cluster itself is billed."""
    states = {"RUNNING": "ready", "PROVISIONING": "creating", "STOPPING": "deleting"}
    states |= {"ERROR": "failed", "RECONCILING": "ready", "DEGRADED": "ready"}
    return node_from_labels(
        raw.get("resourceLabels") or {},
        provider="google",
        zone=_part(path, "locations"),
        state=states.get(str(raw.get("status", "")), "creating"),
        strategy="gke",
        resources=(f"container:{path.lstrip('/')}",),
    )


def cluster_path(raw: dict[str, Any]) -> str:
    """`v1/projects/…/locations/…/clusters/NAME` of a listed cluster, from its selfLink."""
    match = re.search(r"projects/[^/]+/(?:locations|zones)/[^/]+/clusters/.+$", raw["selfLink"])
    text = match[0] if match else raw["selfLink"]
    return f"v1/{text.replace('/zones/', '/locations/')}"


def self_path(raw: dict[str, Any], kind: str, place: str) -> str:
    """`compute/v1/projects/…/zones/…/instances/NAME` from a selfLink or from its parts."""
    link = str(raw.get("selfLink", ""))
    match = re.search(r"projects/[^/]+/.+$", link)
    if match:
        return f"compute/v1/{match[0]}"
    return f"compute/v1/projects/{raw.get('project', '-')}/{place}/{kind}/{raw.get('name', '')}"


def _part(name: str, kind: str) -> str:
    match = re.search(rf"{kind}/([^/]+)", name)
    return match[1] if match else ""


def ssh_port(raw: dict[str, Any]) -> int:
    """22, or the port in the `gml-ssh-port` metadata (machines behind a forwarded port)."""
    metadata = raw.get("metadata") or {}
    items = {i.get("key"): i.get("value") for i in metadata.get("items", [])}
    text = str(items.get("gml-ssh-port") or metadata.get("gml-ssh-port") or "22")
    return int(text) if text.isdigit() and 0 < int(text) < 65536 else 22

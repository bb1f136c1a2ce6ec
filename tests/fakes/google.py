"""The Google half of the fake cloud: TPU v2 and v2alpha1, GKE, buckets, the metadata server."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import unquote

from tests.fakes import gce
from tests.fakes.cloud import TOKEN, Call, Cloud, Refused
from tests.fakes.google_base import check, host_at, operation

_TPU = re.compile(
    r"(v2|v2alpha1)/(projects/[^/]+/locations/([^/]+))/(nodes|queuedResources|operations|acceleratorTypes)"
    r"(?:/([^/:]+))?(?::(\w+))?"
)
TYPES = {"v6e-1": 1, "v6e-4": 1, "v6e-8": 1, "v6e-16": 4, "v6e-32": 8, "v5p-8": 1, "v5p-16": 2,
         "v5litepod-8": 1, "v5litepod-16": 4}  # fmt: skip


def route(cloud: Cloud, call: Call, raw: bytes) -> tuple[int, Any]:
    project = re.search(r"projects/([^/]+)", call.path)
    if project and project[1] not in ("proj-123", "ubuntu-os-accelerator-images"):
        raise Refused(403, "PERMISSION_DENIED", f"Permission denied on resource {project[1]}")
    if call.service in cloud.disabled:
        name = f"{call.service}.googleapis.com"
        detail = {"reason": "SERVICE_DISABLED", "metadata": {"service": name}}
        text = f"{name} has not been used in project 1 before or it is disabled"
        raise Refused(403, "PERMISSION_DENIED", text, [detail])
    if call.method != "GET" and f"{call.service}:{call.method}" in cloud.denied:
        permission = "tpu.nodes.create" if call.method == "POST" else "tpu.nodes.delete"
        raise Refused(403, "PERMISSION_DENIED", f"Permission '{permission}' denied on resource")
    if call.service == "tpu":
        return _tpu(cloud, call)
    if call.service == "compute":
        return gce.route(cloud, call)
    if call.service == "container":
        return _gke(cloud, call)
    return _storage(cloud, call, raw)


# ---- TPU


def _tpu(cloud: Cloud, call: Call) -> tuple[int, Any]:
    match = _TPU.fullmatch(call.path)
    if not match:
        raise Refused(404, "NOT_FOUND", call.path)
    version, parent, zone, kind, name, _ = match.groups()
    check(cloud, f"tpu.{version}", call, call.body)
    if zone in cloud.closed_zones:
        # 403, not 404: skypilot-org/skypilot#2269, dstackai/gpuhunt#98.
        text = f"Location {zone} is not found or access is unauthorized."
        raise Refused(403, "PERMISSION_DENIED", text)
    if kind == "operations" and name is None:
        listed = [o for n, o in cloud.ops.items() if n.startswith(f"{parent}/operations/")]
        return 200, {"operations": listed}
    if kind == "operations":
        return operation(cloud, f"{parent}/operations/{name}")
    if kind == "acceleratorTypes":
        return 200, {"acceleratorTypes": [{"type": t} for t in TYPES]}
    full = f"{parent}/{kind}/{name}"
    if call.method == "GET" and name is None:
        return 200, _list(cloud, parent, zone, kind)
    if call.method == "POST" and name is None:
        return _tpu_create(cloud, call, parent, zone, kind)
    raw = cloud.resources.get(full)
    if raw is None:
        raise Refused(404, "NOT_FOUND", f"Resource '{full}' was not found")
    if call.method == "GET":
        return 200, _public(raw, version)
    if call.method == "PATCH":
        if raw["state"] == "CREATING":
            raise Refused(400, "FAILED_PRECONDITION", "the node is being created")
        cloud.check_labels(call.body.get("labels"))
        for field in call.query["updateMask"].split(","):
            raw[field] = call.body[field]
        return 200, _op(cloud, parent, lambda: raw)
    return _tpu_delete(cloud, call, parent, kind, full, raw)


def _public(raw: dict[str, Any], version: str) -> dict[str, Any]:
    hidden = () if version == "v2alpha1" else ("runDuration", "provisioningModel")
    return {k: v for k, v in raw.items() if not k.startswith("_") and k not in hidden}


def _list(cloud: Cloud, parent: str, zone: str, kind: str) -> dict[str, Any]:
    pattern = re.escape(parent).replace(r"locations/\-", "locations/[^/]+")
    pattern = pattern.replace("locations/-", "locations/[^/]+")
    found = [r for _, r in cloud.listed(rf"{pattern}/{kind}/[^/]+")]
    gone = {n.split("/")[3] for n in cloud.resources if n.count("/") > 3} & cloud.unreachable
    found = [r for r in found if r["name"].split("/")[3] not in cloud.unreachable]
    answer: dict[str, Any] = {kind: [_public(r, "v2alpha1") for r in found]}
    if zone == "-" and gone:
        answer["unreachable"] = sorted(f"locations/{z}" for z in gone)
    return answer


def _tpu_create(
    cloud: Cloud, call: Call, parent: str, zone: str, kind: str
) -> tuple[int, dict[str, Any]]:
    name = f"{parent}/{kind}/{call.query['nodeId' if kind == 'nodes' else 'queuedResourceId']}"
    if name in cloud.resources:
        raise Refused(409, "ALREADY_EXISTS", f"Resource '{name}' already exists")
    if zone in cloud.quota:
        raise Refused(
            429, "RESOURCE_EXHAUSTED",
            "Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded. "
            f"Limit: 0 in region {zone[:-2]}.",
        )  # fmt: skip
    body = json.loads(json.dumps(call.body))
    node = body if kind == "nodes" else body["tpu"]["nodeSpec"][0]["node"]
    cloud.check_labels(node.get("labels"))
    if node["acceleratorType"] not in TYPES:
        raise Refused(400, "INVALID_ARGUMENT", f"unknown accelerator {node['acceleratorType']}")
    body["name"] = name
    cloud.put(name, body)
    if kind == "nodes":
        body["state"] = "CREATING"
        return 200, _op(cloud, parent, lambda: _node_ready(cloud, name, zone), name)
    body["state"] = {"state": "WAITING_FOR_RESOURCES"}

    def grant() -> None:
        if name not in cloud.resources:
            return
        if zone in cloud.stockout:
            text = f'There is no more capacity in the zone "{zone}"'
            error = {"code": 8, "message": text}
            body["state"] = {"state": "FAILED", "failedData": {"error": error}}
            return
        spec = body["tpu"]["nodeSpec"][0]
        child = f"{parent}/nodes/{spec['nodeId']}"
        raw = cloud.put(child, {**spec["node"], "name": child, "queuedResource": name})
        raw["state"] = "CREATING"
        if body.get("runDuration") and not cloud.forget_limit:
            seconds = int(body["runDuration"]["maxRunDuration"][:-1])
            ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(cloud.now() + seconds))
            body["runDuration"]["terminationTime"] = ends
            raw["_dies"] = cloud.now() + seconds
        elif cloud.forget_limit:
            body.pop("runDuration", None)
        _node_ready(cloud, child, zone)
        body["state"] = {"state": "ACTIVE"}

    cloud.later(grant)
    return 200, _op(cloud, parent, lambda: body, name)


def _node_ready(cloud: Cloud, name: str, zone: str) -> Any:
    raw = cloud.resources.get(name)
    if raw is None:
        return {"error": {"code": 5, "message": "gone"}}
    if zone in cloud.stockout:
        # The 200 came long ago; this is how the real service says it.
        del cloud.resources[name]
        return {
            "error": {
                "code": 8,
                "message": f'There is no more capacity in the zone "{zone}"; you can try in '
                "another zone where Cloud TPU Nodes are offered",
            }
        }
    if raw["state"] != "CREATING":
        return raw
    raw["state"] = "READY"
    hosts = TYPES[raw["acceleratorType"]]
    raw["networkEndpoints"] = []
    for index in range(hosts):
        address, port = host_at(cloud, index)
        endpoint = {"ipAddress": f"10.0.0.{index + 2}", "accessConfig": {"externalIp": address}}
        if not raw["networkConfig"].get("enableExternalIps"):
            endpoint = {"ipAddress": address}
        raw["networkEndpoints"].append(endpoint)
        raw["metadata"]["gml-ssh-port"] = str(port)
    cloud.on_create(name, raw)
    return raw


def _tpu_delete(
    cloud: Cloud, call: Call, parent: str, kind: str, name: str, raw: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    children = []
    if kind == "queuedResources":
        children = [n for n, r in cloud.resources.items() if r.get("queuedResource") == name]
        if children and call.query.get("force") != "true":
            raise Refused(400, "FAILED_PRECONDITION", "the queued resource has nodes; use force")
        raw["state"] = {"state": "DELETING"}
    else:
        raw["state"] = "DELETING"

    def gone() -> Any:
        for victim in (name, *children):
            cloud.resources.pop(victim, None)
        return {}

    return 200, _op(cloud, parent, gone, name)


def _op(cloud: Cloud, parent: str, finish: Any, target: str = "") -> dict[str, Any]:
    name = f"{parent.replace('/-', '/global')}/operations/op-{cloud.number()}"
    kind = "type.googleapis.com/google.cloud.tpu.v2.OperationMetadata"
    about = {"@type": kind, "target": target}
    op: dict[str, Any] = {"name": name, "done": False, "metadata": about}
    cloud.ops[name] = op

    def complete() -> None:
        result = finish()
        if isinstance(result, dict) and set(result) == {"error"}:
            op["error"] = result["error"]
        elif isinstance(result, dict) and "name" in result:
            kind = "Node" if "/nodes/" in result["name"] else "QueuedResource"
            shown = {k: v for k, v in _public(result, "v2").items() if k != "_dies"}
            op["response"] = {"@type": f"type.googleapis.com/google.cloud.tpu.v2.{kind}", **shown}
        else:
            op["response"] = {"@type": "type.googleapis.com/google.protobuf.Empty"}
        op["done"] = True

    cloud.later(complete)
    return dict(op)


def enforce(cloud: Cloud) -> None:
    """Does what Google does at a time limit."""
    for name, raw in list(cloud.resources.items()):
        if raw.get("_dies") and cloud.now() >= raw["_dies"]:
            if "/instances/" in name:
                gce.remove_instance(cloud, name)
                continue
            del cloud.resources[name]
            parent = cloud.resources.get(raw.get("queuedResource", ""))
            if parent:
                parent["state"] = {"state": "SUSPENDED"}


def preempt(cloud: Cloud, name: str) -> None:
    """A spot machine is taken away; TPU nodes stay as PREEMPTED and hold their quota."""
    raw = cloud.resources[name]
    if "/nodes/" in name:
        raw["state"] = "PREEMPTED"
        parent = cloud.resources.get(raw.get("queuedResource", ""))
        if parent:
            parent["state"] = {"state": "SUSPENDED"}
    else:
        raw["status"] = "TERMINATED"


# ---- GKE


def _gke(cloud: Cloud, call: Call) -> tuple[int, Any]:
    check(cloud, "container.v1", call, call.body)
    if match := re.fullmatch(r"v1/(projects/[^/]+/locations/[^/]+/operations/[^/]+)", call.path):
        return operation(cloud, match[1])
    if match := re.fullmatch(r"v1/(projects/.+/clusters/[^/]+):setResourceLabels", call.path):
        return _gke_labels(cloud, call, match[1])
    match = re.fullmatch(r"v1/(projects/[^/]+/locations/([^/]+))/clusters(?:/([^/]+))?", call.path)
    if not match:
        raise Refused(404, "NOT_FOUND", call.path)
    parent, place, name = match.groups()
    if call.method == "GET" and name is None:
        pattern = re.escape(parent).replace(r"locations/\-", "locations/[^/]+")
        return 200, {"clusters": [r for _, r in cloud.listed(rf"{pattern}/clusters/[^/]+")]}
    if call.method == "POST":
        body = json.loads(json.dumps(call.body["cluster"]))
        full = f"{parent}/clusters/{body['name']}"
        if full in cloud.resources:
            raise Refused(409, "ALREADY_EXISTS", f"Already exists: {full}.")
        cloud.check_labels(body["resourceLabels"])
        body.update(
            status="PROVISIONING", location=place, endpoint="10.9.9.9", labelFingerprint="0",
            selfLink=f"https://container.googleapis.com/v1/{full}",
        )  # fmt: skip
        cloud.put(full, body)
        cloud.later(lambda: body.update(status="RUNNING"))
        return 200, {"name": f"operation-{cloud.number()}", "status": "RUNNING"}
    full = f"{parent}/clusters/{name}"
    raw = cloud.resources.get(full)
    if raw is None:
        raise Refused(404, "NOT_FOUND", f"Not found: {full}.")
    if call.method == "GET":
        return 200, raw
    if raw["status"] == "PROVISIONING":
        raise Refused(400, "FAILED_PRECONDITION", "Cluster is running incompatible operation.")
    raw["status"] = "STOPPING"
    cloud.later(lambda: cloud.resources.pop(full, None) and None)
    return 200, {"name": f"operation-{cloud.number()}", "status": "RUNNING"}


def _gke_labels(cloud: Cloud, call: Call, full: str) -> tuple[int, Any]:
    """Sets a cluster's labels, all of them, if the fingerprint is that of those before."""
    raw = cloud.resources.get(full)
    if raw is None:
        raise Refused(404, "NOT_FOUND", f"Not found: {full}.")
    if call.body.get("labelFingerprint") != raw.get("labelFingerprint"):
        raise Refused(400, "FAILED_PRECONDITION", "Labels could not be set due to fingerprint.")
    cloud.check_labels(call.body["resourceLabels"])
    op = {"name": f"operation-{cloud.number()}", "status": "RUNNING"}
    cloud.ops[f"{full.split('/clusters/')[0]}/operations/{op['name']}"] = op

    def complete() -> None:
        raw["resourceLabels"] = call.body["resourceLabels"]
        raw["labelFingerprint"] = f"{cloud.number():08x}"
        op["status"] = "DONE"

    cloud.later(complete)
    return 200, dict(op)


# ---- buckets and the metadata server


def _storage(cloud: Cloud, call: Call, raw: bytes) -> tuple[int, Any]:
    """Objects with generations, lists in pages and `ifGenerationMatch`, as the JSON API has them.

    Source: storage.v1's discovery document (objects.insert, get, list, delete) and
    docs.cloud.google.com/storage/docs/request-preconditions: 0 means that there is none, a
    generation that does not match answers 412 conditionNotMet.
    """
    check(cloud, "storage.v1", call, None)
    if match := re.fullmatch(r"storage/v1/b/([^/]+)", call.path):
        if match[1] not in cloud.buckets:
            raise Refused(404, "notFound", "The specified bucket does not exist.")
        return 200, {"name": match[1], "location": cloud.buckets[match[1]]}
    if match := re.fullmatch(r"upload/storage/v1/b/([^/]+)/o", call.path):
        _in_bucket(cloud, match[1])
        full = f"{match[1]}/{call.query['name']}"
        _precondition(cloud, call, full)
        cloud.objects[full] = raw
        cloud.generations[full] = cloud.new_generation()
        return 200, _about(cloud, match[1], full)
    if match := re.fullmatch(r"storage/v1/b/([^/]+)/o", call.path):
        _in_bucket(cloud, match[1])
        start = f"{match[1]}/{call.query.get('prefix', '')}"
        names = sorted(n for n in cloud.objects if n.startswith(start))
        size, begin = cloud.page_size, int(call.query.get("pageToken") or 0)
        page: dict[str, Any] = {"kind": "storage#objects"}
        if names[begin : begin + size]:  # an empty list has no items at all
            page["items"] = [_about(cloud, match[1], n) for n in names[begin : begin + size]]
        if names[begin + size :]:
            page["nextPageToken"] = str(begin + size)
        return 200, page
    if match := re.fullmatch(r"storage/v1/b/([^/]+)/o/([^/]+)", call.path):
        _in_bucket(cloud, match[1])
        full = f"{match[1]}/{unquote(match[2])}"
        if full not in cloud.objects:
            raise Refused(404, "notFound", f"No such object: {full}")
        if call.method == "DELETE":
            _precondition(cloud, call, full)
            del cloud.objects[full]
            return 204, ""
        wanted = call.query.get("generation", _generation(cloud, full))
        if wanted != _generation(cloud, full):
            raise Refused(404, "notFound", f"No such object: {full}")
        if call.query.get("alt") != "media":
            return 200, _about(cloud, match[1], full)
        return 200, cloud.objects[full].decode()
    raise Refused(404, "notFound", call.path)


def _in_bucket(cloud: Cloud, bucket: str) -> None:
    if bucket not in cloud.buckets:
        raise Refused(404, "notFound", "The specified bucket does not exist.")


def _generation(cloud: Cloud, full: str) -> str:
    """Generation as text, like all 64-bit numbers in Google's JSON; '0' without an object."""
    if full not in cloud.objects:
        return "0"
    return cloud.generations.setdefault(full, cloud.new_generation())


def _precondition(cloud: Cloud, call: Call, full: str) -> None:
    wanted = call.query.get("ifGenerationMatch")
    if wanted is not None and wanted != _generation(cloud, full):
        text = "At least one of the pre-conditions you specified did not hold."
        raise Refused(412, "conditionNotMet", text)


def _about(cloud: Cloud, bucket: str, full: str) -> dict[str, Any]:
    name = full.removeprefix(f"{bucket}/")
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "generation": _generation(cloud, full),
        "size": str(len(cloud.objects[full])),
    }


def metadata(cloud: Cloud, call: Call, headers: Any) -> tuple[int, Any]:
    if headers.get("Metadata-Flavor") != "Google" or cloud.deny_metadata:
        raise Refused(403, "forbidden", "Missing Metadata-Flavor:Google header.")
    path = call.path.removeprefix("computeMetadata/v1/")
    if path == "instance/service-accounts/default/token":
        return 200, {"access_token": TOKEN, "expires_in": 3600}
    if path not in cloud.metadata:
        raise Refused(404, "notFound", path)
    return 200, cloud.metadata[path]

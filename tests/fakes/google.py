"""The Google half of the fake cloud: TPU v2 and v2alpha1, Compute Engine, buckets, metadata."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import unquote

from tests.fakes.cloud import TOKEN, Call, Cloud, Refused
from tests.fakes.schema import check_request

_TPU = re.compile(
    r"(v2|v2alpha1)/(projects/[^/]+/locations/([^/]+))/(nodes|queuedResources|operations|acceleratorTypes)"
    r"(?:/([^/:]+))?(?::(\w+))?"
)
_GCE = re.compile(
    r"compute/v1/projects/([^/]+)/(zones/[^/]+|regions/[^/]+|global|aggregated)/(\w+)(?:/([^/]+))?(?:/([\w-]+))?"
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
        return _gce(cloud, call)
    if call.service == "container":
        return _gke(cloud, call)
    return _storage(cloud, call, raw)


def _check(cloud: Cloud, name: str, call: Call, body: Any) -> None:
    errors = check_request(name, call.method, call.path, list(call.query), body)
    if errors:
        cloud.violations += errors
        raise Refused(400, "INVALID_ARGUMENT", f"Invalid JSON payload received: {errors[0]}")


def _address(cloud: Cloud, index: int) -> tuple[str, int]:
    return cloud.addresses[index % len(cloud.addresses)]


# ---- TPU


def _tpu(cloud: Cloud, call: Call) -> tuple[int, Any]:
    match = _TPU.fullmatch(call.path)
    if not match:
        raise Refused(404, "NOT_FOUND", call.path)
    version, parent, zone, kind, name, _ = match.groups()
    _check(cloud, f"tpu.{version}", call, call.body)
    if zone in cloud.closed_zones:
        raise Refused(404, "NOT_FOUND", f"Location {zone} is not found or access is unauthorized.")
    if kind == "operations":
        return _operation(cloud, f"{parent}/operations/{name}")
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
        address, port = _address(cloud, index)
        raw["networkEndpoints"].append(
            {"ipAddress": f"10.0.0.{index + 2}", "accessConfig": {"externalIp": address}}
        )
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
    op: dict[str, Any] = {"name": name, "done": False, "metadata": {"target": target}}
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


def _operation(cloud: Cloud, name: str) -> tuple[int, Any]:
    if name not in cloud.ops:
        raise Refused(404, "NOT_FOUND", name)
    return 200, cloud.ops[name]


# ---- Compute Engine


def _gce(cloud: Cloud, call: Call) -> tuple[int, Any]:
    _check(cloud, "compute.v1", call, call.body)
    if re.fullmatch(r"compute/v1/projects/[^/]+", call.path):
        return 200, {"name": "proj-123"}
    match = _GCE.fullmatch(call.path)
    if not match:
        raise Refused(404, "notFound", call.path)
    project, place, kind, name, verb = match.groups()
    root = f"compute/v1/projects/{project}/{place}"
    if kind == "operations":
        return _operation(cloud, f"{root}/operations/{name}")
    if kind == "machineTypes":
        if place.split("/")[1] in cloud.closed_zones:
            raise Refused(404, "notFound", f"machine type {name} was not found")
        return 200, {"name": name}
    if kind == "images":
        return 200, {"name": verb}
    if kind == "firewalls":
        rule = {"name": "default-allow-ssh", "network": "x/global/networks/default",
                "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}]}  # fmt: skip
        return 200, {"items": [rule]}
    if place == "aggregated":
        return 200, _aggregated(cloud, project, kind, call.query.get("filter", ""))
    if call.method == "GET" and name is None:
        pattern = _name_filter(call.query.get("filter", ""))
        found = [r for n, r in cloud.listed(rf"{re.escape(root)}/{kind}/{pattern}")]
        return 200, {"items": [_shown(r) for r in found]} if found else {}
    if call.method == "POST" and name is None:
        return _gce_create(cloud, call, root, place, kind)
    full = f"{root}/{kind}/{name}"
    raw = cloud.resources.get(full)
    if raw is None:
        raise Refused(404, "notFound", f"The resource '{full}' was not found")
    if verb == "getGuestAttributes":
        raise Refused(404, "notFound", "no guest attributes")
    if call.method == "GET":
        return 200, _shown(raw)
    if verb == "setLabels":
        if call.body.get("labelFingerprint") != raw["labelFingerprint"]:
            raise Refused(412, "conditionNotMet", "Labels fingerprint either invalid or expired")
        cloud.check_labels(call.body["labels"])
        raw["labels"] = call.body["labels"]
        raw["labelFingerprint"] = f"fp{cloud.number()}"
        return 200, _gce_op(cloud, root, lambda: None)
    return _gce_delete(cloud, root, kind, full)


def _shown(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in raw.items() if not k.startswith("_")}


def _name_filter(text: str) -> str:
    match = re.fullmatch(r"name eq (\S+)", text)
    return match[1].replace(".*", "[^/]*") if match else "[^/]+"


def _aggregated(cloud: Cloud, project: str, kind: str, text: str) -> dict[str, Any]:
    items: dict[str, Any] = {}
    pattern = (
        rf"compute/v1/projects/{project}/((?:zones|regions)/[^/]+)/{kind}/({_name_filter(text)})"
    )
    for name, raw in cloud.listed(pattern):
        place = re.fullmatch(pattern, name)[1]  # type: ignore[index]
        if place.split("/")[1] in cloud.unreachable:
            items[place] = {"warning": {"code": "UNREACHABLE"}}
            continue
        if "labels.gml=1" in text and (raw.get("labels") or {}).get("gml") != "1":
            continue
        items.setdefault(place, {kind: []})[kind].append(_shown(raw))
    return {"items": items}


def _gce_op(cloud: Cloud, root: str, finish: Any) -> dict[str, Any]:
    name = f"operation-{cloud.number()}"
    op: dict[str, Any] = {"name": name, "status": "RUNNING"}
    cloud.ops[f"{root}/operations/{name}"] = op

    def complete() -> None:
        error = finish()
        if error:
            op["error"] = {"errors": [error]}
        op["status"] = "DONE"

    cloud.later(complete)
    return dict(op)


def _gce_create(cloud: Cloud, call: Call, root: str, place: str, kind: str) -> tuple[int, Any]:
    key = f"{root}/{kind}/{call.query.get('requestId')}"
    if call.query.get("requestId") and key in cloud.seen_request_ids:
        return 200, cloud.seen_request_ids[key]
    name = f"{root}/{kind}/{call.body['name']}"
    if name in cloud.resources:
        raise Refused(409, "alreadyExists", f"The resource '{name}' already exists")
    zone = place.split("/")[-1]
    body = json.loads(json.dumps(call.body))
    cloud.check_labels(body.get("labels"))
    body["selfLink"] = f"https://www.googleapis.com/{name}"
    if kind in ("instances", "instanceGroupManagers"):
        body["zone"] = f"https://www.googleapis.com/{root}"
    cloud.put(name, body)

    def finish() -> dict[str, str] | None:
        if name not in cloud.resources:
            return None
        if kind == "instances":
            return _boot(cloud, name, root, zone, 0)
        if kind == "instanceGroupManagers":
            template = cloud.resources.get(f"compute/v1/{body['instanceTemplate']}")
            if template is None:
                return {"code": "RESOURCE_NOT_FOUND", "message": "template not found"}
            for index in range(body["targetSize"]):
                child = f"{root}/instances/{body['baseInstanceName']}-{index:04d}"
                raw = json.loads(json.dumps(template["properties"]))
                raw.update(name=child.rsplit("/", 1)[1], zone=body["zone"], _group=name)
                raw["selfLink"] = f"https://www.googleapis.com/{child}"
                cloud.put(child, raw)
                error = _boot(cloud, child, root, zone, index)
                if error:
                    # A group keeps trying; only its machines are missing.
                    cloud.resources.pop(child, None)
        return None

    if kind == "instances":
        body["status"] = "PROVISIONING"
        body["labelFingerprint"] = "fp0"
    op = _gce_op(cloud, root, finish)
    cloud.seen_request_ids[key] = op
    return 200, op


def _boot(cloud: Cloud, name: str, root: str, zone: str, index: int) -> dict[str, str] | None:
    raw = cloud.resources[name]
    if zone in cloud.stockout or zone in cloud.quota:
        del cloud.resources[name]
        if zone in cloud.quota:
            text = "Quota 'TPUS-PER-TPU-FAMILY' exceeded. Limit: 0.0"
            return {"code": "QUOTA_EXCEEDED", "message": text}
        text = f"The zone '{zone}' does not have enough resources available"
        return {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": text}
    disk_name = f"{root}/disks/{raw['name']}"
    cloud.put(
        disk_name,
        {"name": raw["name"], "labels": raw["disks"][0]["initializeParams"].get("labels", {}),
         "zone": raw["zone"], "users": [name], "selfLink": f"https://www.googleapis.com/{disk_name}"},
    )  # fmt: skip
    address, port = _address(cloud, index)
    raw["status"] = "RUNNING"
    raw.setdefault("labelFingerprint", "fp0")
    raw["networkInterfaces"][0]["networkIP"] = f"10.1.0.{index + 2}"
    raw["networkInterfaces"][0]["accessConfigs"][0]["natIP"] = address
    raw["metadata"]["items"].append({"key": "gml-ssh-port", "value": str(port)})
    limit = raw["scheduling"].get("maxRunDuration")
    if limit and not cloud.forget_limit:
        raw["_dies"] = cloud.now() + int(limit["seconds"])
        ends = time.strftime("%Y-%m-%dT%H:%M:%S.000-00:00", time.gmtime(raw["_dies"]))
        raw["resourceStatus"] = {"scheduling": {"terminationTimestamp": ends}}
    cloud.on_create(name, raw)
    return None


def _gce_delete(cloud: Cloud, root: str, kind: str, name: str) -> tuple[int, Any]:
    short = name.rsplit("/", 1)[1]
    users = [r for r in cloud.resources.values() if short in str(r.get("instanceTemplate", ""))
             or short in str(r.get("resourcePolicies", ""))]  # fmt: skip
    if kind in ("instanceTemplates", "resourcePolicies") and users:
        raise Refused(400, "resourceInUseByAnotherResource", f"{name} is already being used")

    def finish() -> None:
        victims = [name]
        if kind == "instanceGroupManagers":
            victims += [n for n, r in cloud.resources.items() if r.get("_group") == name]
        for victim in victims:
            _remove_instance(cloud, victim)

    return 200, _gce_op(cloud, root, finish)


def _remove_instance(cloud: Cloud, name: str) -> None:
    raw = cloud.resources.pop(name, None)
    disk = name.replace("/instances/", "/disks/")
    if raw and "/instances/" in name and disk in cloud.resources:
        if raw["disks"][0].get("autoDelete"):
            del cloud.resources[disk]
        else:
            cloud.resources[disk]["users"] = []


def enforce(cloud: Cloud) -> None:
    """What Google does at a time limit."""
    for name, raw in list(cloud.resources.items()):
        if raw.get("_dies") and cloud.now() >= raw["_dies"]:
            if "/instances/" in name:
                _remove_instance(cloud, name)
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
    _check(cloud, "container.v1", call, call.body)
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
            status="PROVISIONING", location=place, endpoint="10.9.9.9",
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


# ---- buckets and the metadata server


def _storage(cloud: Cloud, call: Call, raw: bytes) -> tuple[int, Any]:
    if match := re.fullmatch(r"storage/v1/b/([^/]+)", call.path):
        if match[1] not in cloud.buckets:
            raise Refused(404, "notFound", "The specified bucket does not exist.")
        return 200, {"name": match[1], "location": cloud.buckets[match[1]]}
    if match := re.fullmatch(r"upload/storage/v1/b/([^/]+)/o", call.path):
        cloud.objects[f"{match[1]}/{call.query['name']}"] = raw
        return 200, {"name": call.query["name"]}
    if match := re.fullmatch(r"storage/v1/b/([^/]+)/o/([^/]+)", call.path):
        name = f"{match[1]}/{unquote(match[2])}"
        if name not in cloud.objects:
            raise Refused(404, "notFound", "No such object")
        return 200, cloud.objects[name].decode()
    raise Refused(404, "notFound", call.path)


def metadata(cloud: Cloud, call: Call, headers: Any) -> tuple[int, Any]:
    if headers.get("Metadata-Flavor") != "Google" or cloud.deny_metadata:
        raise Refused(403, "forbidden", "Missing Metadata-Flavor:Google header.")
    path = call.path.removeprefix("computeMetadata/v1/")
    if path == "instance/service-accounts/default/token":
        return 200, {"access_token": TOKEN, "expires_in": 3600}
    if path not in cloud.metadata:
        raise Refused(404, "notFound", path)
    return 200, cloud.metadata[path]

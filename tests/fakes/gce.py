"""The Compute Engine part of the fake cloud: instances, groups, templates, policies, disks."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from tests.fakes.cloud import Call, Cloud, Refused
from tests.fakes.google_base import check, host_at, operation

_GCE = re.compile(
    r"compute/v1/projects/([^/]+)/(zones/[^/]+|regions/[^/]+|global|aggregated)/(\w+)(?:/([^/]+))?(?:/([\w-]+))?"
)


def route(cloud: Cloud, call: Call) -> tuple[int, Any]:
    check(cloud, "compute.v1", call, call.body)
    if re.fullmatch(r"compute/v1/projects/[^/]+", call.path):
        return 200, {"name": "proj-123"}
    match = _GCE.fullmatch(call.path)
    if not match:
        raise Refused(404, "notFound", call.path)
    project, place, kind, name, verb = match.groups()
    root = f"compute/v1/projects/{project}/{place}"
    if kind == "operations" and name is None:
        pattern = call.query["filter"].removeprefix("targetLink eq ")
        listed = [o for n, o in cloud.ops.items() if n.startswith(f"{root}/operations/")]
        return 200, {"items": [o for o in listed if re.fullmatch(pattern, o.get("targetLink", ""))]}
    if kind == "operations":
        return operation(cloud, f"{root}/operations/{name}")
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
    address, port = host_at(cloud, index)
    raw["status"] = "RUNNING"
    raw.setdefault("labelFingerprint", "fp0")
    interface = raw["networkInterfaces"][0]
    interface["networkIP"] = f"10.1.0.{index + 2}"
    if interface.get("accessConfigs"):
        interface["accessConfigs"][0]["natIP"] = address
    else:
        interface["networkIP"] = address  # only the bastion's side of the network reaches it
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
            remove_instance(cloud, victim)

    return 200, _gce_op(cloud, root, finish)


def remove_instance(cloud: Cloud, name: str) -> None:
    raw = cloud.resources.pop(name, None)
    disk = name.replace("/instances/", "/disks/")
    if raw and "/instances/" in name and disk in cloud.resources:
        if raw["disks"][0].get("autoDelete"):
            del cloud.resources[disk]
        else:
            cloud.resources[disk]["users"] = []

"""The Lambda half of the fake cloud: API v1 with its envelope, rate limits and lists that lag."""

from __future__ import annotations

import time
from typing import Any

from tests.fakes.cloud import Call, Cloud, Refused

# Field names and types as in Lambda's OpenAPI document (lambda-ai-cloud-api-client 2.4.1).
LAUNCH = {
    "region_name": str, "instance_type_name": str, "ssh_key_names": list, "name": str,
    "hostname": str, "image": dict, "user_data": str, "tags": list, "file_system_names": list,
    "file_system_mounts": list, "firewall_rulesets": list,
}  # fmt: skip
TYPES = {"gpu_1x_gh200": (229, ["us-east-3"]),
         "gpu_8x_h100_sxm5": (3192, ["us-west-1", "us-east-1"]),
         "gpu_1x_a10": (75, [])}  # fmt: skip


def route(cloud: Cloud, call: Call) -> tuple[int, Any]:
    path = call.path.removeprefix("api/v1/")
    _rate(cloud, "request")
    if (call.method, path) == ("GET", "instance-types"):
        return 200, {"data": {name: _type(cloud, name) for name in TYPES}}
    if (call.method, path) == ("GET", "ssh-keys"):
        keys = [{"id": n, "name": n, "public_key": k} for n, k in cloud.lambda_keys.items()]
        return 200, {"data": keys}
    if (call.method, path) == ("POST", "ssh-keys"):
        cloud.lambda_keys[call.body["name"]] = call.body["public_key"]
        return 200, {"data": {"id": call.body["name"], **call.body}}
    if (call.method, path) == ("GET", "instances"):
        return 200, {"data": [_shown(r) for _, r in cloud.listed(r"lambda/[^/]+")]}
    if (call.method, path) == ("POST", "instance-operations/launch"):
        return _launch(cloud, call.body)
    if (call.method, path) == ("POST", "instance-operations/terminate"):
        return _terminate(cloud, call.body)
    if path.startswith("instances/"):
        raw = cloud.resources.get(f"lambda/{path.split('/')[1]}")
        if raw is None:
            raise Refused(404, "global/object-does-not-exist", "Instance does not exist")
        if call.method == "POST":
            if set(call.body) != {"name"} or len(call.body["name"]) > 64:
                raise Refused(400, "global/invalid-parameters", "name")
            raw["name"] = call.body["name"]
        return 200, {"data": _shown(raw)}
    raise Refused(404, "global/object-does-not-exist", path)


def _type(cloud: Cloud, name: str) -> dict[str, Any]:
    cents, regions = TYPES[name]
    open_regions = [r for r in regions if r not in cloud.stockout]
    return {
        "instance_type": {"name": name, "price_cents_per_hour": cents, "specs": {"gpus": 1}},
        "regions_with_capacity_available": [{"name": r, "description": r} for r in open_regions],
    }


def _shown(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in raw.items() if not k.startswith("_")}


def _rate(cloud: Cloud, kind: str) -> None:
    now, gap = time.monotonic(), cloud.lambda_gaps[kind]
    if gap and now - cloud.lambda_last[kind] < gap * 0.9:
        cloud.violations.append(f"lambda: {kind} after {now - cloud.lambda_last[kind]:.2f} s")
        raise Refused(429, "global/rate-limited", "Too many requests")
    cloud.lambda_last[kind] = now


def _launch(cloud: Cloud, body: dict[str, Any]) -> tuple[int, Any]:
    _rate(cloud, "launch")
    for key, value in body.items():
        if key not in LAUNCH or not isinstance(value, LAUNCH[key]):
            cloud.violations.append(f"lambda launch: {key}")
            raise Refused(400, "global/invalid-parameters", f"{key} is not valid")
    if len(body["ssh_key_names"]) != 1 or body["ssh_key_names"][0] not in cloud.lambda_keys:
        raise Refused(400, "global/invalid-parameters", "exactly one known ssh key")
    if len(body.get("name", "")) > 64 or len(body.get("user_data", "")) > 1_000_000:
        raise Refused(400, "global/invalid-parameters", "too long")
    if body["region_name"] in cloud.quota:
        raise Refused(400, "global/quota-exceeded", "Quota exceeded: contact support")
    if body["region_name"] in cloud.stockout:
        raise Refused(
            400, "instance-operations/launch/insufficient-capacity", "Not enough capacity"
        )
    number = f"i{cloud.number():05d}"
    address, port = cloud.addresses[0]
    tags = [*body.get("tags", []), {"key": "gml-ssh-port", "value": str(port)}]
    raw = cloud.put(
        f"lambda/{number}",
        {
            "id": number, "name": body.get("name"), "status": "booting", "ip": None,
            "region": {"name": body["region_name"]}, "tags": tags,
            "instance_type": {"name": body["instance_type_name"],
                              "price_cents_per_hour": TYPES[body["instance_type_name"]][0]},
            "ssh_key_names": body["ssh_key_names"], "file_system_names": [],
        },
    )  # fmt: skip
    raw["_user_data"] = body.get("user_data", "")

    def boot() -> None:
        if raw["status"] == "booting":
            raw["status"] = "active"
            raw["ip"] = address
            cloud.on_create(f"lambda/{number}", raw)

    cloud.later(boot)
    return 200, {"data": {"instance_ids": [number]}}


def _terminate(cloud: Cloud, body: dict[str, Any]) -> tuple[int, Any]:
    found = [cloud.resources.get(f"lambda/{i}") for i in body["instance_ids"]]
    if None in found:
        raise Refused(404, "global/object-does-not-exist", "Instance does not exist")
    for raw in found:
        raw["status"] = "terminating"  # type: ignore[index]

        def gone(raw: dict[str, Any] = raw) -> None:  # type: ignore[assignment]
            raw["status"] = "terminated"
            cloud.resources.pop(f"lambda/{raw['id']}", None)

        cloud.later(gone)
    return 200, {"data": {"terminated_instances": [_shown(r) for r in found if r]}}

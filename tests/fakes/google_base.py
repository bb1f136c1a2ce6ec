"""Parts that the fakes of Google's APIs share."""

from __future__ import annotations

from typing import Any

from tests.fakes.cloud import Call, Cloud, Refused
from tests.fakes.schema import check_request


def check(cloud: Cloud, name: str, call: Call, body: Any) -> None:
    errors = check_request(name, call.method, call.path, list(call.query), body)
    if errors:
        cloud.violations += errors
        raise Refused(400, "INVALID_ARGUMENT", f"Invalid JSON payload received: {errors[0]}")


def host_at(cloud: Cloud, index: int) -> tuple[str, int]:
    return cloud.addresses[index % len(cloud.addresses)]


def operation(cloud: Cloud, name: str) -> tuple[int, Any]:
    if name not in cloud.ops:
        raise Refused(404, "NOT_FOUND", name)
    return 200, cloud.ops[name]

"""Google's answers to a create: their meaning and the next step, one row per public report."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gml.errors import Denied, Elsewhere, GmlError, QuotaError, StockOut
from gml.http import is_rate_limit
from gml.nodes.create import create
from gml.request import NodeRequest
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import machines


def tpu(code: int, status: str, message: str, *details: dict) -> tuple[str, int, Any]:
    """The error shape of Google's newer APIs (google.rpc.Status as JSON)."""
    error: dict[str, Any] = {"code": code, "status": status, "message": message}
    return "answer", code, {"error": {**error, **({"details": list(details)} if details else {})}}


def compute(code: int, reason: str, message: str) -> tuple[str, int, Any]:
    """The error shape of Compute Engine."""
    errors = [{"message": message, "domain": "usageLimits", "reason": reason}]
    return "answer", code, {"error": {"code": code, "message": message, "errors": errors}}


# Answers for one zone only: the search goes on. Each as it was reported in public.
ELSEWHERE = {
    # skypilot-org/skypilot#2269, dstackai/gpuhunt#98
    "location": tpu(
        403, "PERMISSION_DENIED", "Location us-east5-b is not found or access is unauthorized."
    ),
    # firezone/firezone#7711
    "policy": tpu(
        403,
        "PERMISSION_DENIED",
        "Location us-east5-b violates constraint constraints/gcp.resourceLocations",
        {"reason": "LOCATION_POLICY_VIOLATED"},
    ),
    # GoogleCloudPlatform/oss-test-infra#2703, SUSE-Enceladus/img-proof#212
    "policy-412": compute(
        412,
        "conditionNotMet",
        "Location ZONE:us-east5-b violates constraint constraints/gcp.resourceLocations on the "
        "resource projects/p/zones/us-east5-b/instances/gml-x.",
    ),
    # skypilot-org/skypilot#3840
    "accelerator": tpu(
        400,
        "INVALID_ARGUMENT",
        "Cloud TPU received a bad request. the accelerator v6e-8 was not found in zone us-east5-b "
        "[EID: 0x945ef875d10e8e13]",
    ),
    # skypilot-org/skypilot#831: the code has a suffix
    "exhausted": tpu(
        503, "UNAVAILABLE", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS: us-east5-b is exhausted"
    ),
    # marin-community/marin#1612, terraform-docs-samples#610
    "quota": tpu(
        429,
        "RESOURCE_EXHAUSTED",
        "Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0 "
        "in region us-east5.",
    ),
}
# Too many requests a minute: nothing is missing, so it is waited.
BUSY = {
    # skypilot-org/skypilot#586, dstackai/dstack#2610
    "429": tpu(
        429,
        "RESOURCE_EXHAUSTED",
        "Quota exceeded for quota metric 'Mutate requests' and limit 'Mutate requests per minute' "
        "of service 'tpu.googleapis.com' for consumer 'project_number:1'.",
        {"reason": "RATE_LIMIT_EXCEEDED"},
    ),
    # hashicorp/terraform-provider-google#8360
    "403": compute(
        403,
        "rateLimitExceeded",
        "Quota exceeded for quota group 'ReadGroup' and limit 'Read requests per 100 seconds' of "
        "service 'compute.googleapis.com' for consumer 'project_number:1'.",
    ),
    # scylladb/scylla-cluster-tests#7940
    "403-region": compute(
        403,
        "forbidden",
        "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute per "
        "region' of service 'compute.googleapis.com' for consumer 'project_number:1'.",
    ),
}


def request(strategy: str, **more) -> NodeRequest:
    value = {"provider": "google", "name": "x", "zone": "us-east5", "wait_ssh": False, **more}
    return NodeRequest("v6e-8", 3600, strategy=strategy, **value)


@pytest.mark.parametrize("answer", ELSEWHERE)
@pytest.mark.parametrize("strategy", ["node", "gce"])
def test_one_zone_that_refuses_is_not_the_end_of_the_search(server, answer, strategy):
    server.cloud.faults = lambda call: (
        ELSEWHERE[answer] if call.method == "POST" and "us-east5-b" in call.path else None
    )
    node = create(make_fleet(), request(strategy))
    assert node.zone == "us-east5-a"
    server.cloud.drain()
    assert len(machines(server.cloud)) == 1


def test_a_type_that_no_zone_has_is_said_so_and_not_retried_for_ever(server):
    server.cloud.faults = lambda call: ELSEWHERE["accelerator"] if call.method == "POST" else None
    with pytest.raises(Elsewhere, match="none of 2 places") as caught:
        create(make_fleet(), request("node", retry_until_up=True))
    assert "not offered to this project in us-east5-b, us-east5-a" in str(caught.value)
    assert make_fleet().store.all() == []


@pytest.mark.parametrize("answer", BUSY)
@pytest.mark.parametrize("strategy", ["node", pytest.param("gce", marks=pytest.mark.slow)])
def test_rate_limits_are_waited_for_and_never_cost_the_machine(server, answer, strategy):
    """Seven refusals in a row, on every kind of call: more than the tries of other errors."""
    left: dict[str, int] = {}

    def fault(call):
        kind = f"{call.method} {call.path.split('/')[-2]}"
        left[kind] = left.get(kind, 8) - 1
        return BUSY[answer] if left[kind] > 0 else None

    server.cloud.faults = fault
    node = create(make_fleet(), request(strategy, zone="us-east5-b"))
    assert node.zone == "us-east5-b" and node.state == "ready"
    assert [c.method for c in server.cloud.mutations() if c.method == "DELETE"] == []


def test_a_rate_limit_while_it_comes_up_does_not_delete_it(server, monkeypatch):
    """Longer than one call waits: the polls go on, as long as the machine may take to come up."""
    monkeypatch.setattr("gml.http.RATE_PATIENCE", 0.0)
    polls = []

    def fault(call):
        if call.method == "GET" and "/operations/" in call.path and len(polls) < 4:
            polls.append(call.path)
            return BUSY["429"]
        return None

    server.cloud.faults = fault
    node = create(make_fleet(), request("node", zone="us-east5-b"))
    assert node.state == "ready" and len(polls) == 4
    assert [c.method for c in server.cloud.mutations() if c.method == "DELETE"] == []


def test_a_missing_permission_and_a_quota_stay_what_they_are(server):
    permission = tpu(
        403, "PERMISSION_DENIED", "Permission 'tpu.nodes.create' denied on 'projects/p'"
    )
    for answer, kind in ((permission, Denied), (ELSEWHERE["quota"], QuotaError)):
        server.cloud.faults = lambda call, a=answer: a if call.method == "POST" else None
        with pytest.raises(kind):
            create(make_fleet(), request("node", zone="us-east5-b"))


def test_capacity_is_retried_where_other_zones_are_closed(server):
    tried = []

    def fault(call):
        if call.method == "POST" and call.path.endswith("/nodes"):
            tried.append(call.path)
            return ELSEWHERE["location"] if "us-east5-a" in call.path else None
        return None

    server.cloud.faults = fault
    server.cloud.stockout = {"us-east5-b"}

    def progress(step: str) -> None:
        if "next round" in step:
            server.cloud.stockout = set()

    wanted = dataclasses.replace(request("node", retry_until_up=True), retry_pause_s=0.01)
    assert create(make_fleet(), wanted, progress).zone == "us-east5-b"
    assert issubclass(StockOut, GmlError) and not issubclass(Elsewhere, StockOut)
    assert len(tried) == 3


def test_rate_limits_are_told_from_quotas():
    from gml.http import ApiError

    for _, status, body in BUSY.values():
        error = body["error"]
        details = error.get("details") or error.get("errors")
        assert is_rate_limit(ApiError(status, "", error["message"], details))
    text = ELSEWHERE["quota"][2]["error"]["message"]
    assert not is_rate_limit(ApiError(429, "RESOURCE_EXHAUSTED", text))

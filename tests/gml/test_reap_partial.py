"""`gml reap` where a cloud shows only a part: what has to go there is deleted all the same."""

from __future__ import annotations

import pytest

from gml.nodes.create import create
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import machines, request

DARK = "projects/proj-123/locations/europe-west4-a/nodes/gml-dark"


def one_zone_dark(cloud):
    cloud.put(DARK, {"name": DARK, "state": "READY", "labels": {}})
    cloud.unreachable = {"europe-west4-a"}


def clusters_denied(cloud):
    # https://cloud.google.com/kubernetes-engine/docs/troubleshooting: 403 with this text.
    text = "Permission 'container.clusters.list' denied"
    body = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": text}}
    cloud.faults = lambda call: ("answer", 403, body) if call.service == "container" else None


@pytest.mark.parametrize("trouble", [one_zone_dark, clusters_denied])
@pytest.mark.parametrize("path", ["node", "gce"])
def test_an_expired_machine_goes_although_a_list_failed(server, home, path, trouble):
    cloud = server.cloud
    create(make_fleet(), request(path))
    (home / "nodes" / "x.json").unlink()  # the clouds' labels alone have to do
    trouble(cloud)
    cloud.offset = 2 * 3600
    report = reap(make_fleet(cloud.now))
    assert [n.id for n in report.deleted] == ["x"]
    assert report.problems != []  # and it says that there may be more
    assert [m for m in machines(cloud) if m != DARK] == []

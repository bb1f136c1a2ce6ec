"""All create paths of gml against the fake cloud, and what each of them may leave behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gml.reaper import reap
from gml.request import NodeRequest
from tests.fakes.cloud import Cloud
from tests.fakes.gml_kit import make_fleet

LAMBDA = {"REQUEST_GAP_S": 0.0, "LAUNCH_GAP_S": 0.01, "LIST_LAG_S": 0.12}
# name: (options, zones without capacity)
PATHS = {
    "node": ("-t v6e-8 -p google --strategy node --zone us-east5-b", ()),
    "node-failover": ("-t v6e-8 -p google --strategy node --zone us-east5", ("us-east5-b",)),
    "queued-slice": ("-t v6e-16 -p google --strategy queued --spot --zone us-east5-b", ()),
    "flex": ("-t v6e-8 -p google --strategy flex --zone us-east5-a", ()),
    "flex-failover": ("-t v6e-8 -p google --strategy flex --zone us-east5", ("us-east5-b",)),
    "gce": ("-t v6e-8 -p google --strategy gce --spot --zone us-east5-b", ()),
    "gce-failover": ("-t v6e-8 -p google --strategy gce --zone us-east5", ("us-east5-b",)),
    "gce-slice": ("-t v6e-16 -p google --strategy gce --zone us-east5-b", ()),
    "lambda": ("-t gpu_1x_gh200 -p lambda --unsafe", ()),
}
HOSTS = {"gce-slice": 4}  # a slice of the TPU API is one node with several addresses


def some(*slow: str) -> list:
    """All paths, those named only in the slow suite."""
    return [pytest.param(p, marks=pytest.mark.slow if p in slow else ()) for p in PATHS]


def words(path: str) -> list[str]:
    return ["node", "create", *PATHS[path][0].split(), "--timeout", "1h", "--name", "x", "--no-ssh"]


def fresh(server, path: str) -> Cloud:
    cloud = server.reset(Cloud(op_delay=0.005, list_lag=0.05))
    cloud.stockout = set(PATHS[path][1])
    for name in ("nodes", "locks"):
        folder = Path(os.environ["GML_HOME"]) / name
        for file in folder.glob("*"):
            file.unlink()
    return cloud


def machines(cloud: Cloud) -> list[str]:
    cloud.settle()
    return [
        n
        for n, r in cloud.resources.items()
        if "/nodes/" in n or "/instances/" in n or n.startswith("lambda/")
    ]


def reap_after_deadline(cloud: Cloud, hours: float = 3) -> None:
    """Does what any machine without local state does once the deadline has passed."""
    cloud.faults = lambda call: None
    cloud.drain()
    time.sleep(cloud.list_lag)
    cloud.offset = hours * 3600
    for file in (Path(os.environ["GML_HOME"]) / "nodes").glob("*"):
        file.unlink()
    report = reap(make_fleet(cloud.now))
    assert report.problems == []
    cloud.drain()


def request(path: str, **more) -> NodeRequest:
    options = PATHS[path][0].split()
    value = {
        o: options[i + 1]
        for i, o in enumerate(options)
        if o.startswith("-") and i + 1 < len(options)
    }
    return NodeRequest(
        instance_type=value["-t"],
        provider=value["-p"],
        timeout_s=3600,
        name="x",
        zone=value.get("--zone", ""),
        strategy=value.get("--strategy", "auto"),
        spot="--spot" in options,
        unsafe=True,
        wait_ssh=False,
        **more,
    )

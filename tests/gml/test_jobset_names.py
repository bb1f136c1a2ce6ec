"""JobSets of a queue: none is taken for another's, which would pass for done without having run."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from gml.cli.queue import _checked_name
from gml.errors import UsageError
from gml.model import Node
from gml.request import NodeRequest
from gml.supervisor import jobsets
from gml.supervisor.jobsets import ClusterDriver, jobset_name
from gml.supervisor.plan import next_step
from gml.supervisor.queue import Job, Machine, Queue

CLUSTER = Node("c", "google", "me", "cluster", created=1)


def queue(name: str = "q", *jobs: Job) -> Queue:
    up = Machine("c", "up", 1, CLUSTER)
    return Queue(name, "me", NodeRequest(), 10**10, cluster="c", jobs=jobs, machine=up)


@pytest.fixture
def kubernetes(monkeypatch):
    """State of each JobSet by name, and a driver on them."""
    made: dict[str, str] = {}
    monkeypatch.setattr(jobsets.jobset, "state", lambda api, name: made.get(name, "none"))
    monkeypatch.setattr(jobsets.jobset, "remove", lambda api, name: made.pop(name, None))
    driver = ClusterDriver(None)  # type: ignore[arg-type]
    monkeypatch.setattr(driver, "_cluster", lambda queue: CLUSTER)
    driver._api = object()
    return driver, made


def test_a_job_is_not_done_by_a_namesake_with_the_same_beginning(kubernetes):
    driver, made = kubernetes
    first = Job("muon-baseline-lr-2e-2", "x", state="done", exit_code=0)
    second = Job("muon-baseline-lr-4e-2", "x")
    known = queue("ablations-d24", first, second)
    made[jobset_name(known, first)] = "Completed"
    assert next_step(known, driver.observe(known), 100).kind == "start"
    made[jobset_name(known, second)] = "Completed"
    assert next_step(known, driver.observe(known), 100).kind == "finish"
    again = dataclasses.replace(second, attempt=1)
    known = queue("ablations-d24", first, again)
    assert next_step(known, driver.observe(known), 100).kind == "start"


def test_every_queue_job_and_attempt_has_a_name_of_its_own_that_kubernetes_takes():
    long = "a" * 20
    queues = ["q", "a", "a-b", "a-b-c", long, f"{long[:18]}-b"]
    jobs = ["b", "b-c", "c", "b_c", "b-r1", "0", "x-", "_", "b" * 41, "b" * 40 + "c", "b_" * 20]
    names = [
        jobset_name(queue(q), Job(j, "x", attempt=n))
        for q, j, n in itertools.product(queues, jobs, (0, 1, 11))
        if j != "_"
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", n) for n in names)
    # What can be read is left as it is.
    assert jobset_name(queue("multi"), Job("first", "x")) == "multi-first"


@pytest.mark.parametrize("name", ["b-r1", "b-r12", "b" * 37])
def test_a_job_is_not_named_as_the_attempt_of_another(name):
    """On one machine too: `b-r1` would find how the second attempt of b has ended."""
    with pytest.raises(UsageError, match="without -rN"):
        _checked_name(name)
    assert _checked_name("b-r") == "b-r" and _checked_name("b" * 36)


def test_a_removed_queue_leaves_nothing_to_its_successor(kubernetes):
    driver, made = kubernetes
    job = Job("b", "x", state="done", attempt=1)
    known = queue("q", job, Job("c", "x"))
    for n in (0, 1):
        made[jobset_name(known, dataclasses.replace(job, attempt=n))] = "Completed"
    made["other"] = "running"
    driver.forget(known)
    assert made == {"other": "running"}

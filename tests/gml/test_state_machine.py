"""Random interleavings of creates, crashes, faults, preemptions and reaps: never a leak."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gml.errors import GmlError
from gml.nodes import create as creating
from gml.nodes.change import delete
from gml.nodes.create import create
from gml.nodes.undo import undo
from gml.providers import lambda_cloud
from gml.reaper import reap
from gml.request import NodeRequest
from tests.fakes.cloud import LAMBDA_KEY, Cloud, Server
from tests.fakes.gml_kit import CONFIG, PUBLIC, make_fleet
from tests.fakes.google import preempt

PLACES = st.sampled_from(["node", "queued", "flex", "gce", "lambda"])
NAMES = st.sampled_from(["a", "b", "c"])


class Crash(BaseException):
    """The process dies here: nothing of ours runs afterwards."""


class Machines(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.before = dict(os.environ)
        self.folder = Path(tempfile.mkdtemp(prefix="gsm", dir="/tmp"))
        (self.folder / "key").write_text("x")
        (self.folder / "key.pub").write_text(PUBLIC)
        (self.folder / "config.toml").write_text(CONFIG.format(key=self.folder / "key"))
        self.cloud = Cloud(op_delay=0.0)
        self.server = Server(self.cloud)
        os.environ.update(self.server.environment())
        os.environ.update(GML_HOME=str(self.folder), LAMBDA_API_KEY=LAMBDA_KEY)
        self.saved = lambda_cloud.REQUEST_GAP_S, lambda_cloud.LAUNCH_GAP_S, lambda_cloud.LIST_LAG_S
        lambda_cloud.REQUEST_GAP_S = lambda_cloud.LAUNCH_GAP_S = 0.0
        lambda_cloud.LIST_LAG_S = 0.0

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        self.finish()
        self.server.close()
        os.environ.clear()
        os.environ.update(self.before)
        lambda_cloud.REQUEST_GAP_S, lambda_cloud.LAUNCH_GAP_S, lambda_cloud.LIST_LAG_S = self.saved
        shutil.rmtree(self.folder, ignore_errors=True)

    def fleet(self):
        return make_fleet(self.cloud.now)

    @rule(name=NAMES, place=PLACES, crash=st.integers(0, 12), fault=st.integers(0, 12),
          code=st.sampled_from([429, 500, 503]), out=st.booleans())  # fmt: skip
    def create(self, name, place, crash, fault, code, out) -> None:
        first = len(self.cloud.log)
        self.cloud.stockout = {"us-east5-b"} if out else set()
        self.cloud.faults = lambda c: ("status", code) if c.number - first == fault else None

        def progress(what: str) -> None:
            if crash and len(self.cloud.log) - first >= crash:
                raise Crash

        where = (
            {"instance_type": "gpu_1x_gh200", "provider": "lambda"}
            if place == "lambda"
            else {
                "instance_type": "v6e-8",
                "provider": "google",
                "zone": "us-east5-b",
                "strategy": place,
            }
        )
        fleet = self.fleet()
        with contextlib.suppress(GmlError, Crash), mock.patch.object(creating, "undo", _undo):
            create(
                fleet,
                NodeRequest(timeout_s=3600, name=name, wait_ssh=False, unsafe=True, **where),
                progress,
            )
        self.cloud.faults = lambda c: None
        self.cloud.drain()

    @rule(name=NAMES)
    def delete(self, name) -> None:
        fleet = self.fleet()
        with contextlib.suppress(GmlError):
            delete(fleet, fleet.resolve(name))
        self.cloud.drain()

    @rule(name=NAMES)
    def lose_the_record(self, name) -> None:
        (self.folder / "nodes" / f"{name}.json").unlink(missing_ok=True)

    @rule(name=NAMES)
    def preempt(self, name) -> None:
        for full in list(self.cloud.resources):
            if full.endswith(f"/nodes/gml-{name}") or full.endswith(f"/instances/gml-{name}"):
                preempt(self.cloud, full)

    @rule(hours=st.floats(-1, 2))
    def time_passes(self, hours) -> None:
        self.cloud.offset += hours * 3600

    @rule()
    def reap(self) -> None:
        reap(self.fleet())
        self.cloud.drain()

    @invariant()
    def nothing_is_double(self) -> None:
        if not hasattr(self, "cloud"):
            return
        assert self.cloud.violations == []
        found = [n for n in self.cloud.billable() if "/nodes/" in n or "/instances/" in n]
        assert len(found) == len(set(found))
        ids = [r["name"] for n, r in self.cloud.resources.items() if n.startswith("lambda/")]
        assert len({i.split("--")[0] for i in ids}) == len(ids)

    def finish(self) -> None:
        """Whatever happened: past all deadlines one reap from a clean machine leaves nothing."""
        shutil.rmtree(self.folder / "nodes", ignore_errors=True)
        self.cloud.drain()
        # Queued requests add an hour of waiting to their deadline; the clock may have gone back.
        self.cloud.offset = abs(self.cloud.offset) + 10 * 3600
        report = reap(self.fleet())
        assert report.problems == []
        self.cloud.drain()
        assert self.cloud.billable() == []


def _undo(fleet, intent, provider, error, progress):
    """A crashed process undoes nothing; an error that was handled does."""
    if not isinstance(error, Crash):
        undo(fleet, intent, provider, error, progress)


class LongMachines(Machines):
    """The same for longer."""


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestMachines = Machines.TestCase
TestMachines.settings = _settings(8, 8)
TestLongMachines = pytest.mark.slow(LongMachines.TestCase)
TestLongMachines.settings = _settings(25, 15)

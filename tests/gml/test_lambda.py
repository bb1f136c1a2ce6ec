"""Lambda: live offers, rate limits, no double launches, and no machine that nothing would end."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import time

import pytest

from gml.errors import AuthError, QuotaError, StockOut, UsageError
from gml.heartbeat import beat, heartbeat_age
from gml.nodes.change import delete
from gml.nodes.create import check_safe, create
from gml.planning import make_spec
from gml.providers import lambda_cloud
from gml.reaper import reap
from gml.request import NodeRequest
from tests.fakes.cloud import LAMBDA_KEY
from tests.fakes.gml_kit import make_fleet

REQUEST = NodeRequest(
    "gpu_8x_h100_sxm5", 3600, provider="lambda", name="x", wait_ssh=False, unsafe=True
)
CREATE = ("node", "create", "-t", "gpu_1x_gh200", "-p", "lambda", "--timeout", "1h", "--no-ssh")


@pytest.fixture(autouse=True)
def _key(server, fast_lambda):
    return None


def test_create_list_extend_delete(cloud):
    fleet = make_fleet()
    node = create(fleet, REQUEST)
    assert (node.price, node.zone) == (31.92, "us-west-1")
    (raw,) = (r for n, r in cloud.resources.items() if n.startswith("lambda/"))
    assert raw["name"] == f"gml-x--{node.deadline}"
    assert LAMBDA_KEY not in json.dumps({k: v for k, v in raw.items()})
    moved = fleet.provider("lambda").set_deadline(node, node.deadline + 600)
    assert make_fleet().list_live().nodes[0].deadline == moved.deadline
    assert raw["name"].endswith(str(node.deadline + 600))
    delete(fleet, node)
    assert cloud.billable() == []
    assert cloud.violations == []


def test_self_terminate_without_a_login_is_refused(cloud):
    wanted = dataclasses.replace(REQUEST, unsafe=False, self_terminate=True)
    with pytest.raises(UsageError, match="--self-terminate needs a login"):
        create(make_fleet(), wanted)
    assert cloud.billable() == [] and make_fleet().store.all() == []


def test_stockout_moves_to_the_next_region_and_quota_is_told_apart(cloud):
    cloud.stockout = {"us-west-1"}
    assert create(make_fleet(), REQUEST).zone == "us-east-1"
    delete(make_fleet(), make_fleet().store.get("x"))
    cloud.quota = {"us-east-1"}
    with pytest.raises(QuotaError):
        create(make_fleet(), REQUEST)
    cloud.stockout = {"us-west-1", "us-east-1"}
    with pytest.raises(StockOut, match="anywhere now"):
        create(make_fleet(), REQUEST)


def test_the_rate_limits_are_kept_by_ourselves(cloud, monkeypatch):
    monkeypatch.setattr(lambda_cloud, "REQUEST_GAP_S", 0.06)
    monkeypatch.setattr(lambda_cloud, "LAUNCH_GAP_S", 0.3)
    cloud.lambda_gaps = {"request": 0.05, "launch": 0.25}
    for name in ("a", "b"):
        create(make_fleet(), NodeRequest(**{**REQUEST.__dict__, "name": name}))
    assert cloud.violations == []


def test_a_launch_whose_answer_got_lost_is_not_launched_twice(cloud):
    launches = []

    def fault(call):
        if call.path.endswith("/launch"):
            launches.append(call.number)
            return ("drop", "after") if len(launches) == 1 else None
        return None

    cloud.faults, cloud.list_lag = fault, 0.08
    create(make_fleet(), REQUEST)
    assert len(launches) == 1
    assert len(cloud.billable()) == 1


def test_it_refuses_what_nothing_would_end(cloud, gml):
    refused = gml(*CREATE, "--name", "x")
    assert refused.returncode == 10
    assert "gml reaper install" in refused.stderr and "--self-terminate" in refused.stderr
    assert cloud.mutations() == []
    fleet = make_fleet()
    beat(fleet.config, fleet.store, time.time() - 1200, ["lambda"])
    assert gml(*CREATE, "--name", "x").returncode == 10, "a heartbeat of 20 minutes ago is old"
    # A reaper that looks at Google alone, or works for somebody else, ends no machine of Lambda's.
    beat(fleet.config, fleet.store, time.time(), ["google"])
    assert gml(*CREATE, "--name", "x").returncode == 10
    bob = dataclasses.replace(fleet.config, owner="bob")
    beat(bob, fleet.store, time.time(), ["lambda"])
    assert gml(*CREATE, "--name", "x").returncode == 10
    beat(bob, fleet.store, time.time(), ["lambda"], everybody=True)
    assert heartbeat_age(fleet.config, "lambda") < 60
    reap(fleet)
    assert heartbeat_age(fleet.config, "lambda") < 60
    check_safe(fleet, fleet.provider("lambda"), NodeRequest("gpu_1x_gh200", 3600))


def test_a_heartbeat_in_the_bucket_counts_on_other_machines(cloud, home):
    text = (home / "config.toml").read_text() + '\n[google]\nbucket = "here"\n'
    (home / "config.toml").write_text(text)
    fleet = make_fleet()
    assert heartbeat_age(fleet.config, "lambda") is None
    reap(fleet)
    (home / "reaper.json").unlink()
    assert heartbeat_age(fleet.config, "lambda") < 60
    assert "here/gml/reaper/tester/lambda.json" in cloud.objects


def test_a_cloud_that_fails_neither_stops_the_reaper_nor_counts_as_looked_at(cloud, monkeypatch):
    fleet = make_fleet()
    create(fleet, REQUEST)
    google = fleet.provider("google")
    monkeypatch.setattr(google, "list_nodes", lambda: {}["nonsense"])
    cloud.offset = 7200
    later = make_fleet(cloud.now)
    later._providers["google"] = google
    report = reap(later)
    assert [n.id for n in report.deleted] == ["x"]
    assert "google: KeyError" in report.problems[0]
    assert heartbeat_age(later.config, "lambda", cloud.now()) < 60
    assert heartbeat_age(later.config, "google", cloud.now()) is None


def test_self_terminate_sends_the_key_over_stdin_only(cloud):
    fleet = make_fleet()
    provider = fleet.provider("lambda")
    node = create(fleet, REQUEST)
    script = provider.self_terminate_script(node, make_spec(fleet, REQUEST))
    (raw,) = (r for n, r in cloud.resources.items() if n.startswith("lambda/"))
    assert LAMBDA_KEY in script and "chmod 600" in script
    assert LAMBDA_KEY not in raw["_user_data"]
    assert raw["id"] in script and "instance-operations/terminate" in script


def test_the_key(home, monkeypatch, cloud, gml):
    monkeypatch.delenv("LAMBDA_API_KEY")
    provider = make_fleet().provider("lambda")
    monkeypatch.setattr(
        type(provider.config.lambda_), "api_key_file", str(home / "k"), raising=False
    )
    with pytest.raises(AuthError, match="gml init lambda"):
        lambda_cloud.LambdaProvider(make_fleet().config, make_fleet().store).api_key()
    monkeypatch.setenv("LAMBDA_API_KEY", "wrong")
    with pytest.raises(AuthError, match="does not accept"):
        create(make_fleet(), REQUEST)
    monkeypatch.setenv("LAMBDA_API_KEY", LAMBDA_KEY)
    done = gml("init", "lambda", "--apply")
    assert done.returncode == 0, done.stderr
    assert LAMBDA_KEY not in done.stdout + done.stderr + (home / "config.toml").read_text()


def test_unhealthy_is_believed_after_minutes_and_not_at_one_reading(cloud, home, sshd_farm):
    """One missed look is no end; nor is a bad name for a machine on which a job runs."""
    from gml.remote import jobs

    folder, servers = sshd_farm
    cloud.addresses = [("127.0.0.1", servers[0].port)]
    text = (home / "config.toml").read_text()
    (home / "config.toml").write_text(text.replace(str(home.parent / "key"), str(folder / "key")))
    provider = lambda_cloud.LambdaProvider
    was, provider.ssh_user = provider.ssh_user, getpass.getuser()
    try:
        fleet = make_fleet(cloud.now)
        node = create(fleet, REQUEST)
        (raw,) = (r for n, r in cloud.resources.items() if n.startswith("lambda/"))
        raw["status"] = "unhealthy"
        assert reap(fleet).deleted == []
        raw["status"] = "active"  # it was for a moment; what was noted is forgotten
        cloud.offset += 900
        assert reap(fleet).deleted == []
        raw["status"] = "unhealthy"
        assert reap(fleet).deleted == []
        fleet.ssh.write_config()
        fleet.ssh.run(node, "mkdir -p w")
        jobs.start(fleet.ssh, node, "j", "sleep 60", workdir="w", env={})
        cloud.offset += 700
        assert reap(fleet).deleted == []  # a job runs
        jobs.terminate(fleet.ssh, node, "j")
        cloud.offset += 300
        (gone,) = reap(fleet).deleted
        assert re.fullmatch("unhealthy for 16m4.s, and no job runs on it", gone.note)
    finally:
        provider.ssh_user = was
    cloud.drain()
    assert cloud.billable() == []


@pytest.mark.slow
def test_a_machine_that_boots_unhealthy_for_a_moment_is_waited_for(cloud, monkeypatch):
    looks = []

    def moment(call):
        if "/instances/i" in call.path and call.method == "GET":
            looks.append(call)
            raw = cloud.resources.get(f"lambda/{call.path.rsplit('/', 1)[1]}", {})
            if raw.get("status", "terminated") in ("terminating", "terminated"):
                return
            raw["status"] = "unhealthy" if len(looks) < 4 else "active"
            raw["ip"] = "127.0.0.1"

    cloud.faults = moment
    assert create(make_fleet(), REQUEST).state == "ready" and len(looks) >= 4
    delete(make_fleet(), make_fleet().store.get("x"))
    # For good: another one is asked for, and this one goes.
    monkeypatch.setattr(lambda_cloud, "UNHEALTHY_BOOT_S", 0.02)
    looks.clear()
    cloud.stockout = {"us-east-1"}

    def always(call):
        moment(call)
        for name, raw in cloud.resources.items():
            raw["status"] = "unhealthy" if name.startswith("lambda/") and looks else raw["status"]

    cloud.faults = always
    with pytest.raises(StockOut, match="stays unhealthy"):
        create(make_fleet(), REQUEST)
    cloud.drain()
    assert cloud.billable() == []

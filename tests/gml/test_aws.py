"""EC2 through real boto3 against moto: the same teardown contract as the other providers keep."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from gml.errors import AuthError, Denied, Elsewhere, GmlError, QuotaError, StockOut, UsageError
from gml.nodes.change import delete, extend_plan
from gml.nodes.create import create
from gml.reaper import reap
from gml.request import NodeRequest
from tests.fakes.gml_kit import CONFIG, make_fleet

pytestmark = pytest.mark.slow
WORDS = ["node", "create", "-t", "1xL4", "-p", "aws", "--spot", "--timeout", "1h", "--name", "x",
         "--no-ssh", "--unsafe"]  # fmt: skip
REQUEST = NodeRequest("1xL4", 3600, provider="aws", name="x", spot=True, wait_ssh=False,
                      unsafe=True)  # fmt: skip


@pytest.fixture(scope="module")
def _ec2():
    pytest.importorskip("moto", reason="needs moto[ec2,server] and boto3 (extra test-slow)")
    from tests.fakes.aws import Ec2

    made = Ec2()
    yield made
    made.close()


@pytest.fixture
def ec2(_ec2, home, monkeypatch):
    from gml.providers import aws

    _ec2.reset()
    image = "ami-12c6146b"  # one that moto knows
    text = CONFIG.format(key=home.parent / "key")
    text += f'[aws]\nregions = "us-east-1 us-west-2"\nimage = "{image}"\n'
    (home / "config.toml").write_text(text)
    monkeypatch.setenv("GML_ENDPOINT_AWS", _ec2.url)
    # Real credentials of this machine must never be found.
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                        "AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none",
                        "AWS_EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(aws, "LIST_LAG_S", 0.1)
    return _ec2


def later(hours: float):
    return lambda: time.time() + hours * 3600


def test_create_list_extend_delete(ec2):
    fleet = make_fleet()
    node = create(fleet, REQUEST)
    (raw,) = ec2.instances()
    tags = {t["Key"]: t["Value"] for t in raw["Tags"]}
    assert tags["gml-id"] == "x" and tags["gml-deadline"] == str(node.deadline)
    assert raw["InstanceType"] == "g6.2xlarge" and raw["InstanceLifecycle"] == "spot"
    behaviour = ec2.client().describe_instance_attribute(
        InstanceId=raw["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
    )
    assert behaviour["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    data = ec2.client().describe_instance_attribute(
        InstanceId=raw["InstanceId"], Attribute="userData"
    )["UserData"]["Value"]
    script = base64.b64decode(data).decode()
    assert len(script) <= 16384  # EC2's limit, which moto does not know
    public = (Path(os.environ["GML_HOME"]).parent / "key.pub").read_text().strip()
    assert "gml-watchdog.service" in script and public in script
    plan = extend_plan(fleet, node, node.deadline + 600)
    assert plan[0]["body"]["Action"] == "CreateTags"
    moved = fleet.provider("aws").set_deadline(node, node.deadline + 600)
    assert make_fleet().list_live().nodes[0].deadline == moved.deadline
    delete(fleet, node)
    assert ec2.instances() == []
    assert fleet.provider("aws").ended_at(node) is not None


def test_regions_are_tried_and_answers_told_apart(ec2):
    def no_capacity(number, action):
        # EC2 says so with a 500, which boto3 tries five times.
        first = ec2.calls.count("RunInstances") <= 5
        ends = action == "RunInstances" and first
        return ("error", 500, "InsufficientInstanceCapacity") if ends else None

    ec2.fault = no_capacity
    node = create(make_fleet(), REQUEST)
    # The cheapest region by EC2's spot prices of now comes first; the other one had room.
    assert len(node.tried) == 2 and node.tried[1] == f"launch:{node.zone}"
    delete(make_fleet(), make_fleet().store.get("x"))
    for code, kind in (
        ("InsufficientInstanceCapacity", StockOut),
        ("VcpuLimitExceeded", QuotaError),
        ("MaxSpotInstanceCountExceeded", QuotaError),
        ("Unsupported", Elsewhere),
        ("UnauthorizedOperation", Denied),
        ("AuthFailure", AuthError),
    ):
        ec2.fault = lambda number, action, c=code: (
            ("error", 400, c) if action == "RunInstances" else None
        )
        with pytest.raises(kind):
            create(make_fleet(), REQUEST)
        assert ec2.instances() == [] and make_fleet().store.all() == [], code


def test_a_taken_name_is_neither_adopted_nor_deleted(ec2, monkeypatch):
    monkeypatch.setenv("GML_OWNER", "bob")
    create(make_fleet(), REQUEST)
    before = [i["InstanceId"] for i in ec2.instances()]
    for owner, said in (("ada", "another owner's"), ("bob", "exists already")):
        (Path(os.environ["GML_HOME"]) / "nodes" / "x.json").unlink(missing_ok=True)
        monkeypatch.setenv("GML_OWNER", owner)
        with pytest.raises(UsageError, match=said):
            create(make_fleet(lambda: time.time() + 60), REQUEST)
        assert [i["InstanceId"] for i in ec2.instances()] == before != []


def test_past_its_deadline_it_is_reaped_from_anywhere(ec2):
    create(make_fleet(), REQUEST)
    (Path(os.environ["GML_HOME"]) / "nodes" / "x.json").unlink()
    assert reap(make_fleet()).deleted == []
    assert [n.id for n in reap(make_fleet(later(2))).deleted] == ["x"]
    assert ec2.instances() == []


def test_a_stopped_machine_goes_and_a_silent_region_is_said(ec2):
    create(make_fleet(), REQUEST)
    (raw,) = ec2.instances()
    client = ec2.client()
    client.stop_instances(InstanceIds=[raw["InstanceId"]])
    ec2.fault = lambda number, action: ("error", 403, "UnauthorizedOperation")
    report = reap(make_fleet())
    assert report.deleted == [] and "UnauthorizedOperation" not in "".join(report.problems)
    assert any("us-east-1" in p and "us-west-2" in p for p in report.problems)
    ec2.fault = lambda number, action: None
    assert [n.note for n in reap(make_fleet()).deleted] == ["terminated"]
    assert ec2.instances() == []


def sweep(ec2) -> None:
    """Reaps as any machine without local state does once the deadline has passed."""
    ec2.fault = lambda number, action: None
    for record in (Path(os.environ["GML_HOME"]) / "nodes").glob("*"):
        record.unlink()
    report = reap(make_fleet(later(3)))
    assert report.problems == []


@pytest.mark.parametrize(
    "fault", [("drop", "before"), ("drop", "after"), ("error", 503, "Unavailable"),
              ("error", 503, "RequestLimitExceeded")]
)  # fmt: skip
def test_one_broken_call_heals(ec2, fault):
    create(make_fleet(), REQUEST)
    total = len(ec2.calls)
    for number in range(total):
        ec2.reset()
        for record in (Path(os.environ["GML_HOME"]) / "nodes").glob("*"):
            record.unlink()
        ec2.fault = lambda call, action, n=number: fault if call == n else None
        create(make_fleet(), REQUEST)
        assert len(ec2.instances()) == 1, number
        sweep(ec2)
        assert ec2.instances() == [], number


def test_an_outage_from_any_call_on(ec2):
    create(make_fleet(), REQUEST)
    total = len(ec2.calls)
    for number in range(total):
        ec2.reset()
        ec2.fault = lambda call, action, n=number: (
            ("error", 400, "AuthFailure") if call >= n else None
        )
        with contextlib.suppress(GmlError):
            create(make_fleet(), REQUEST)
        sweep(ec2)
        assert ec2.instances() == [], number


def test_ctrl_c_at_any_call_leaves_nothing(ec2):
    create(make_fleet(), REQUEST)
    total = len(ec2.calls)
    for number in range(1, total):
        ec2.reset()
        for record in (Path(os.environ["GML_HOME"]) / "nodes").glob("*"):
            record.unlink()
        fleet, once = make_fleet(), []

        def interrupt(what, number=number, once=once):
            if len(ec2.calls) >= number and not once:
                once.append(what)
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            create(fleet, REQUEST, interrupt)
            continue
        assert ec2.instances() == [] and fleet.store.all() == [], number


def test_kill_9_between_all_api_calls(ec2, zygote, home):
    def kill() -> None:
        os.kill(int((home / "child.pid").read_text()), signal.SIGKILL)

    number, finished = 0, False
    while not finished:
        for when in ("before", "after"):
            ec2.reset()
            for record in (home / "nodes").glob("*"):
                record.unlink()
            ec2.fault = lambda call, action, n=number, w=when: (
                ("hook", kill, w) if call == n else None
            )
            code = zygote.run(WORDS)
            text = (home / "child.err").read_text()[-2000:]
            assert code == -9 or (code == 0 and number >= 3), (number, text)
            finished = finished or code == 0
            if when == "after":
                ec2.fault = lambda call, action: None
                assert zygote.run(WORDS) in (0, 2), (number, text)
                assert len(ec2.instances()) == 1, number
            sweep(ec2)
            assert ec2.instances() == [], (number, when)
        number += 1


def test_lost_output_does_not_keep_it(ec2, zygote, home):
    """The reader of the output goes away at the launch; each later write fails."""
    pipe = home / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    readers = [reader]

    def go_away(call, action):
        if action == "RunInstances" and readers:
            os.close(readers.pop())

    ec2.fault = go_away
    code = zygote.run(WORDS, out=pipe)
    assert code != 0
    assert ec2.instances() == []


def test_without_credentials_or_boto3_one_line_and_nothing_made(ec2, gml, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    done = gml(*WORDS)
    assert (done.returncode, "no AWS credentials" in done.stderr) == (3, True), done.stderr
    assert ec2.instances() == []

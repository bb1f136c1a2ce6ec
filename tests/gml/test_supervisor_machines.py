"""Queues on machines of the fake cloud with real sshd: the real command, state in the bucket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.fakes.cloud import Cloud
from tests.fakes.gml_kit import CONFIG, git, make_fleet
from tests.fakes.gml_paths import machines, reap_after_deadline
from tests.fakes.google import preempt

# A training script as the real one behaves: saves its steps in the mirror, and resumes from there.
TRAIN = """import os, sys, time
mirror = os.environ["MIRROR"]
first = int(open(mirror).read()) + 1 if "--resume" in sys.argv and os.path.exists(mirror) else 0
for step in range(first, 4):
    open(mirror, "w").write(str(step))
    print("step", step, "of", os.environ["GAIA_NODE"], flush=True)
    while step in (1, 2) and not os.path.exists(mirror + ".go"):
        time.sleep(0.05)
"""
ADD = ("queue", "add", "exp", "-t", "v6e-8", "-p", "google", "--strategy", "gce", "--spot",
       "--zone", "us-east5-b", "--timeout", "10h", "--unsafe")  # fmt: skip
NEXT = ("queue", "add", "exp")


@pytest.fixture
def world(server, hosts, home, sshd_farm, monkeypatch):
    """The cloud whose machines are our sshd, and whose bucket holds the queues."""
    folder, servers = sshd_farm
    cloud = server.reset(Cloud(op_delay=0.005))
    cloud.addresses = [("127.0.0.1", servers[0].port)]
    user = servers[0].address.split("@")[0]
    text = CONFIG.format(key=folder / "key")
    text += f'\n[google]\nbucket = "here"\nssh_user = "{user}"\n'
    (home / "config.toml").write_text(text)

    def fresh_disk(name: str, raw: dict) -> None:
        # A machine that is made anew has nothing of the former one.
        shutil.rmtree(servers[0].home, ignore_errors=True)
        servers[0].home.mkdir()

    cloud.on_create = fresh_disk
    return cloud


def train(repo: Path) -> Path:
    (repo / "train.py").write_text(TRAIN)
    (repo / ".env").write_text("TOKEN=hunter2\n")
    git(repo, "add", "train.py")
    git(repo, "commit", "-qm", "first")
    return repo


def elsewhere(home: Path) -> None:
    """Another computer, such as a Cloud Run job each time: nothing of the former one's state."""
    for name in ("nodes", "locks", "sync", "history.jsonl", "known_hosts", "ssh_config"):
        path = home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def shown(gml, name: str = "exp") -> dict:
    return json.loads(gml("queue", "ls", name, "--json").stdout)[0]


def until(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_preempted_spot_run_goes_on_from_its_mirror_without_the_laptop(
    world, home, repo, gml, tmp_path
):
    mirror = tmp_path / "mirror"
    command = ("--env", f"MIRROR={mirror}", "--", "python3", "train.py")
    done = gml(*ADD, *command, cwd=train(repo))
    assert done.returncode == 0, done.stderr
    assert "no supervisor runs" in done.stderr and "held back as secrets: .env" in done.stderr
    second = "echo second on $GAIA_NODE; git log --oneline"
    assert gml(*NEXT, "--", second, cwd=repo).returncode == 0
    elsewhere(home)
    repo.rename(tmp_path / "gone")  # the laptop is away
    done = gml("supervise")
    assert done.returncode == 0, done.stderr
    assert shown(gml)["machine"] == "exp-1 up"
    until(lambda: mirror.exists() and mirror.read_text() == "1", "the job did not start")
    for name in machines(world):
        preempt(world, name)
    elsewhere(home)
    done = gml("supervise")
    assert done.returncode == 0, done.stderr
    state = shown(gml)
    assert (state["machine"], state["restarts"]) == ("exp-2 up", 1), (state, done.stderr)
    Path(f"{mirror}.go").write_text("")
    until(lambda: mirror.read_text() == "3", "the job was not resumed")
    time.sleep(0.3)
    for _ in range(6):
        elsewhere(home)
        assert gml("supervise").returncode == 0
        state = shown(gml)
        if state["machine"] == "no machine":
            break
        time.sleep(0.2)
    assert [(j["state"], j["exit_code"]) for j in state["jobs"]] == [("done", 0)] * 2
    log = gml("queue", "logs", "exp", "job-1").stdout
    assert "step 2 of exp-2" in log and "step 0" not in log
    log = gml("queue", "logs", "exp").stdout
    assert "second on exp-2" in log and "first" in log  # with the last commit of the history
    assert state["machine"] == "no machine" and machines(world) == []
    assert state["spent_usd"] > 0
    stored = b"".join(world.objects.values())
    assert b"hunter2" not in stored


@pytest.mark.slow
def test_removal_ends_the_job_and_its_machine(world, home, repo, gml):
    assert gml(*ADD, "--job", "long", "--", "sleep 1000", cwd=repo).returncode == 0
    assert gml(*NEXT, "--job", "later", "--no-sync", "--", "true", cwd=repo).returncode == 0
    assert gml("supervise").returncode == 0
    assert machines(world) != []
    refused = gml("queue", "rm", "exp", "long")
    assert refused.returncode == 2 and "long runs; end it with its machine" in refused.stderr
    assert gml("queue", "rm", "exp", "later").returncode == 0
    assert [j["job"] for j in shown(gml)["jobs"]] == ["long"]
    assert gml("queue", "rm", "exp", "--dry-run").returncode == 0 and machines(world) != []
    assert gml("queue", "rm", "exp").returncode == 0
    assert machines(world) == []
    assert [n for n in world.objects if "/queues/" in n or "/code/" in n] == []


@pytest.mark.slow
def test_what_can_not_work_is_said_before_anything_is_queued(world, home, repo, gml):
    for words, text in (
        ((*ADD[:3], "--timeout", "1h", "--", "true"), "--instance-type is missing"),
        ((*ADD[:7], "--", "true"), "--timeout is missing"),
        ((*ADD,), "the command is missing"),
        ((*ADD, "--data", "/home/x", "--", "true"), "lies on this computer"),
        ((*ADD, "--env", "HF_TOKEN=abc", "--", "true"), "use --secret HF_TOKEN"),
        (("queue", "add", "Exp", "-t", "v6e-8", "--timeout", "1h", "--", "true"), "not usable"),
        ((*ADD, "--budget", "much", "--", "true"), "not an amount in US dollars"),
        ((*ADD, "--cluster", "c1", "--", "true"), "--cluster needs --image"),
    ):
        done = gml(*words, cwd=repo)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    assert world.objects == {}
    assert gml(*ADD, "--", "true", cwd=repo).returncode == 0
    for words, text in (
        ((*NEXT, "--job", "job-1", "--", "true"), "has a job 'job-1' already"),
        ((*NEXT, "-t", "v6e-4", "--", "true"), "--instance-type is set when a queue is made"),
        ((*NEXT, "--budget", "5USD", "--", "true"), "--budget is set when a queue is made"),
    ):
        done = gml(*words, cwd=repo)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    assert "no queue 'nope'" in gml("queue", "ls", "nope").stderr
    assert "known: exp" in gml("queue", "ls", "nope").stderr


@pytest.mark.slow
def test_a_secret_that_the_supervisor_lacks_fails_the_job_and_costs_no_other(
    world, home, repo, gml, monkeypatch
):
    assert gml(*ADD, "--secret", "GAIA_KEY", "--no-sync", "--", "true", cwd=repo).returncode == 0
    assert gml(*NEXT, "--no-sync", "--", "true", cwd=repo).returncode == 0
    assert gml("supervise").returncode == 0
    first, second = shown(gml)["jobs"]
    assert first["state"] == "failed" and "lacks the secret GAIA_KEY" in first["note"]
    assert second["state"] in ("running", "done")


@pytest.mark.slow
def test_the_budget_of_a_queue_bounds_its_machine(world, home, repo, gml):
    # v6e-8 on spot costs more than $1 an hour: a dollar buys less than that.
    assert gml(*ADD, "--budget", "1USD", "--no-sync", "--", "sleep 1000", cwd=repo).returncode == 0
    assert gml("supervise").returncode == 0
    node = make_fleet().provider("google").list_nodes()[0]
    assert node.limit is not None and 120 < node.limit - node.created < 3600


@pytest.mark.slow
def test_kill_9_at_every_change_that_a_supervisor_makes(world, home, repo, gml, zygote):
    """A real process is killed before or after each call that changes something, anywhere."""
    number, finished = 0, False
    while not finished:
        world = _again(world, home)
        assert gml(*ADD, "--no-sync", "--setup", "true", "--", "true", cwd=repo).returncode == 0
        count = [0]

        def fault(call, number=number, count=count):
            count[0] += call.mutating
            if call.mutating and count[0] == number + 1:
                return ("hook", kill_child, ("before", "after")[number % 2])
            return None

        world.faults = fault
        code = zygote.run(["supervise"])
        finished = code == 0
        assert code in (0, -9), (number, (home / "child.err").read_text()[-2000:])
        world.faults = lambda call: None
        elsewhere(home)
        world.offset += 700  # the killed one's lease has run out
        for _ in range(6):
            assert zygote.run(["supervise"]) == 0, (home / "child.err").read_text()[-2000:]
            assert len(machines(world)) <= 1, number
            state = shown(gml)
            if state["machine"] == "no machine":
                break
            time.sleep(0.2)
        assert [j["state"] for j in state["jobs"]] == ["done"], (number, state)
        assert machines(world) == [] and state["machine"] == "no machine", number
        reap_after_deadline(world, hours=30)
        assert world.billable() == [] and world.violations == [], number
        number += 1
    assert number > 8


def kill_child() -> None:
    os.kill(int((Path(os.environ["GML_HOME"]) / "child.pid").read_text()), signal.SIGKILL)


def _again(cloud: Cloud, home: Path) -> Cloud:
    """The same cloud, empty."""
    elsewhere(home)
    for part in (cloud.resources, cloud.objects, cloud.born, cloud.ops, cloud.pending):
        part.clear()
    cloud.offset = 0.0
    cloud.faults = lambda call: None
    return cloud

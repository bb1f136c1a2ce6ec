"""The golden path on real machines: sshd on loopback, the real CLI in processes of its own."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gml.errors import Unavailable
from gml.nodes.change import delete, extend
from gml.nodes.create import create
from gml.remote import jobs
from tests.fakes.gml_kit import git, make_fleet

CREATE = ("node", "create", "-p", "local", "--zone", "box", "--timeout", "1h")
SPEEDRUN = """#!/bin/bash
echo "deadline $GAIA_DEADLINE price $GAIA_PRICE_PER_HOUR node $GAIA_NODE"
echo "endpoint $OTEL_EXPORTER_OTLP_ENDPOINT"
mkdir -p runs/tiny; python3 main.py | tee runs/tiny/report.md
exit "${1:-0}"
"""


def real_gml(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as users start it."""
    return subprocess.run(
        [sys.executable, "-m", "gml", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
    )


def test_golden_path_create_sync_run_logs_fetch_delete(hosts, repo, home, gml):
    (repo / "speedrun.sh").write_text(SPEEDRUN)
    (repo / ".env").write_text("TOKEN=hunter2\n")
    git(repo, "add", "speedrun.sh")
    token = home / "metrics_token"
    token.write_text("metrics-secret-token")
    token.chmod(0o600)
    with (home / "config.toml").open("a") as file:
        file.write(f'\n[metrics]\nendpoint = "https://m.example"\ntoken_file = "{token}"\n')
    done = real_gml(
        "run", "--provider", "local", "--zone", "box", "--timeout", "1hr", "--name", "one", "--",
        "bash", "speedrun.sh", "7", cwd=repo,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert re.search(r"deadline \d{10} price 0.0000 node one", done.stdout)
    assert "endpoint https://m.example" in done.stdout
    assert (repo / "runs" / "tiny" / "report.md").read_text() == "hello\n"
    assert not (hosts[0].home / "repo" / ".env").exists()
    assert "held back as secrets: .env" in done.stderr
    # Deleted: no marker, no job, no record; the history knows it for `gml cost`.
    assert not (hosts[0].home / ".gml" / "node").exists()
    assert json.loads(gml("ls", "--json").stdout)["nodes"] == []
    assert [n["id"] for n in json.loads(gml("cost", "--json").stdout)["nodes"]] == ["one"]
    assert "metrics-secret-token" not in done.stdout + done.stderr


def test_a_detached_job_outlives_the_cli_and_is_taken_up_again(hosts, repo, gml):
    created = gml(*CREATE, "--name", "d")
    assert (created.returncode, created.stdout.strip()) == (0, "d"), created.stderr
    script = (
        "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.2; done; "
        "mkdir -p runs; echo r > runs/r; exit 9"
    )
    begun = gml("run", "--node", "d", "--detach", "--job", "long", "--", script, cwd=repo)
    assert begun.returncode == 0, begun.stderr
    assert "goes on without this terminal" in begun.stderr
    assert gml("logs", "d", "--list").stdout.split() == ["long", "running"]
    attached = gml("run", "--attach", "d", cwd=repo)
    assert attached.returncode == 9
    assert attached.stdout.splitlines() == [f"line {i}" for i in range(1, 9)]
    assert (repo / "runs" / "r").exists()
    # --attach ends like the run it takes up: --node keeps the node.
    assert gml("node", "delete", "d").returncode == 0


@pytest.mark.parametrize("ends_meanwhile", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_follower_harms_nothing_and_a_broken_line_is_taken_up(
    hosts, repo, fleet, ends_meanwhile
):
    node = make_local(fleet, "box", "k")
    jobs.start(
        fleet.ssh, node, "j", "for i in $(seq 40); do echo $i; sleep 0.05; done; exit 3",
        workdir="w", env={},
    )  # fmt: skip
    follower = subprocess.Popen(
        [sys.executable, "-m", "gml", "logs", "-f", "k"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    time.sleep(0.6)
    follower.kill()
    follower.wait()
    ended = hosts[0].home / ".gml" / "jobs" / "j" / "rc"
    sink = Broken(hosts[0], ended if ends_meanwhile else None)
    code = jobs.follow(fleet.ssh, node, "j", out=sink)
    assert code == 3
    assert sink.broke
    assert sink.data.decode().split() == [str(i) for i in range(1, 41)]
    delete(fleet, node)


class Broken:
    """A sink that cuts all connections of the server once, and may then wait for a file."""

    def __init__(self, server, until: Path | None) -> None:
        self.server, self.until, self.data, self.broke = server, until, b"", False

    def write(self, chunk: bytes) -> None:
        self.data += chunk
        if not self.broke and self.data.count(b"\n") >= 5:
            self.broke = True
            self.server.hang_up()
            while self.until and not self.until.exists():
                time.sleep(0.05)

    def flush(self) -> None:
        return


def make_local(fleet, zone: str, name: str, timeout: int = 3600):
    from gml.request import NodeRequest

    return create(fleet, NodeRequest("local", timeout, provider="local", zone=zone, name=name))


def test_sync_follows_git_and_never_sends_secrets(hosts, repo, fleet):
    from gml.remote import sync

    node = make_local(fleet, "box", "s")
    (repo / "pkg").mkdir()
    (repo / "pkg" / "a b'c.py").write_text("x\n")
    (repo / "run.sh").write_text("echo\n")
    (repo / "run.sh").chmod(0o755)
    (repo / "ignored.txt").write_text("no\n")
    for name in (".env", ".env.local", "deploy.pem", "id_ed25519", "sub.key", ".env.example"):
        (repo / name).write_text("s3cret\n")
    git(repo, "add", "-f", ".env", "deploy.pem")
    (repo / "link").symlink_to("main.py")
    report = sync.push(fleet.ssh, node, repo, "w")
    there = hosts[0].home / "w"
    sent = sorted(str(p.relative_to(there)) for p in there.rglob("*") if not p.is_dir())
    assert sent == [".env.example", ".gitignore", "link", "main.py", "pkg/a b'c.py", "run.sh"]
    assert sorted(report.withheld) == [".env", ".env.local", "deploy.pem", "id_ed25519", "sub.key"]
    assert os.access(there / "run.sh", os.X_OK) and (there / "link").is_symlink()
    # Files of others on the machine stay; what we sent and no longer have goes, empty folders too.
    (there / "result.txt").write_text("theirs\n")
    (repo / "pkg" / "a b'c.py").unlink()
    assert sync.push(fleet.ssh, node, repo, "w").deleted == 1
    assert not (there / "pkg").exists() and (there / "result.txt").exists()
    assert sync.push(fleet.ssh, node, repo, "w").deleted == 0
    delete(fleet, node)


@pytest.fixture
def reaps_nobody():
    """This process, in the place of a container's PID 1 that never asks for those who ended."""
    prctl = ctypes.CDLL(None).prctl
    before = ctypes.c_int(0)
    prctl(37, ctypes.byref(before), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
    prctl(36, 1, 0, 0, 0)
    known = {one.pid for one in psutil.Process().children()}
    yield
    prctl(36, before.value, 0, 0, 0)
    for one in psutil.Process().children():
        if one.pid not in known and one.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(one.pid, 0)


def test_a_job_is_over_where_nobody_asks_for_its_process(hosts, fleet, reaps_nobody):
    """Its id stays for ever, as it does in a container whose PID 1 is no init."""
    node = make_local(fleet, "box", "z")
    out = io.BytesIO()
    jobs.start(fleet.ssh, node, "j", "echo one; sleep 0.3; echo two; exit 3", workdir="w", env={})
    assert jobs.follow(fleet.ssh, node, "j", out=out) == 3 and out.getvalue() == b"one\ntwo\n"
    pid = int((hosts[0].home / ".gml" / "jobs" / "j" / "pid").read_text())
    assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # else this shows nothing
    assert jobs.status(fleet.ssh, node, "j") == "3"
    (hosts[0].home / ".gml" / "jobs" / "j" / "rc").unlink()  # as if it had been killed
    assert jobs.status(fleet.ssh, node, "j") == "lost"
    with pytest.raises(Unavailable, match="without an exit code"):
        jobs.follow(fleet.ssh, node, "j", out=out)
    delete(fleet, node)


def test_exec_on_one_and_on_all_hosts(hosts, fleet, gml):
    make_local(fleet, "slice", "four")
    assert gml("exec", "four", "--", "exit 37").returncode == 37
    assert gml("exec", "four", "--", "echo", "a b", "$HOME").stdout == "a b $HOME\n"
    script = "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"
    done = gml("exec", "four", "--all", "--", script)
    assert done.returncode == 0
    wanted = [f"[{i}] {i} of 4 at 127.0.0.1:8476" for i in range(4)]
    assert sorted(done.stdout.splitlines()) == wanted


def test_exec_all_fails_fast_and_ends_the_others(hosts, fleet, gml):
    make_local(fleet, "slice", "ff")
    # The trap speaks only when the others are ended from outside; else they would sleep on.
    command = (
        "[ $JAX_PROCESS_ID = 2 ] && { sleep 0.5; exit 4; }; "
        "trap 'echo ended; exit 1' TERM; sleep 300 & wait"
    )
    done = gml("exec", "ff", "--all", "--", command)
    assert done.returncode == 4
    assert done.stdout.count("ended") == 3


def test_a_job_on_a_slice_ends_with_the_first_host_that_fails(hosts, repo, fleet, monkeypatch):
    from gml.remote import fanout
    from gml.run import Console, Runner, RunRequest

    monkeypatch.setattr(fanout, "WATCH_S", 0.3)
    node = make_local(fleet, "slice", "sl")
    command = "[ $JAX_PROCESS_ID = 2 ] && exit 5; sleep 300"
    request = RunRequest(command=command, job="j", folder=repo, dest="w", sync=False)
    assert Runner(fleet, request, Console()).run(node, None) == 5
    assert all(jobs.status(fleet.ssh, node, "j", index=i).isdigit() for i in (0, 2))
    delete(fleet, node)


def test_secrets_travel_over_stdin_only(hosts, repo, fleet, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    node = make_local(fleet, "box", "sec")
    job = 'sleep 1.5; echo "have ${#HF_TOKEN}"'
    words = ["run", "--node", "sec", "--job", "j", "--secret", "HF_TOKEN", "--", job]
    process = subprocess.Popen(
        [sys.executable, "-m", "gml", *words], cwd=repo, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    seen = ""
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen += path.read_bytes().decode(errors="replace") + "\n"
            except OSError:
                continue
        time.sleep(0.05)
    out = process.stdout.read().decode()
    process.stdout.close()
    assert "have 14" in out
    assert "seq" in seen or "sleep" in seen, "the watch on /proc saw nothing"
    assert "hf_very_secret" not in seen
    assert "hf_very_secret" not in out
    env = hosts[0].home / ".gml" / "jobs" / "j" / "env"
    assert env.stat().st_mode & 0o777 == 0o600
    for path in Path(os.environ["GML_HOME"]).rglob("*"):
        if path.is_file():
            assert b"hf_very_secret" not in path.read_bytes(), path
            assert path.stat().st_mode & 0o077 == 0, path
    delete(fleet, node)


def test_the_watchdog_ends_the_job_at_the_deadline(hosts, fleet):
    node = make_local(fleet, "box", "dl")
    trap = "trap 'echo saved; exit 0' TERM; for i in $(seq 2000); do sleep 0.1; done"
    jobs.start(fleet.ssh, node, "j", trap, workdir="w", env={})
    stubborn = "trap '' TERM; sleep 600"
    jobs.start(fleet.ssh, node, "stubborn", stubborn, workdir="w", env={})
    moved = extend(fleet, node, round(time.time()) + 6)
    folder = hosts[0].home / ".gml"
    for _ in range(900):  # looks, not seconds: a machine may stand still for a while
        if not (folder / "node" / "labels.json").exists():
            break
        time.sleep(0.1)
    assert moved.deadline and not (folder / "node" / "labels.json").exists()
    assert (folder / "jobs" / "j" / "log").read_text().endswith("saved\n")
    assert jobs.status(fleet.ssh, node, "j") == "0"
    # Killed at once; where nobody collects it, it stays a zombie for a while.
    for _ in range(300):
        if jobs.status(fleet.ssh, node, "stubborn") != "running":
            break
        time.sleep(0.2)
    assert jobs.status(fleet.ssh, node, "stubborn") == "lost"
    assert [n.note for n in fleet.list_live().nodes] == ["lost"]


def test_a_machine_in_use_is_not_taken_twice(hosts, fleet, gml):
    make_local(fleet, "box", "first")
    second = gml(*CREATE, "--name", "second")
    assert second.returncode == 6
    assert "in use by another node" in second.stderr
    assert [n.id for n in make_fleet().list_live().nodes] == ["first"]


def test_recover_makes_a_new_node_and_resumes(hosts, repo, fleet, monkeypatch):
    """Preempted: deleted, made again, the command gets --resume and its exit code counts."""
    from gml.request import NodeRequest
    from gml.run import Console, Runner, RunRequest

    command = "bash job.sh"
    (repo / "job.sh").write_text(
        'echo "args: $*"; [ "${1:-}" = --resume ] && exit 0\n'
        "touch ~/.gml/node/told-preempted-1; exit 143\n"
    )
    git(repo, "add", "job.sh")
    request = RunRequest(command=command, job="j", folder=repo, dest="w", recover=True)
    node_request = NodeRequest(
        "local", 600, provider="local", zone="box", name="r", retry_pause_s=0.1
    )
    says = []
    assert Runner(fleet, request, Console(says.append)).run(None, node_request) == 0
    assert fleet.list_live().nodes == []
    # Without --recover the same is an error with its own exit code.
    request = RunRequest(command=command, job="j", folder=repo, dest="w")
    from gml.run import Preempted

    with pytest.raises(Preempted):
        Runner(fleet, request, Console(says.append)).run(None, node_request)


def test_connect_and_ide(hosts, fleet, home, gml):
    make_local(fleet, "box", "c")
    user = Path(os.environ["HOME"]) / ".ssh" / "config"
    user.write_text("Host other\n  Port 99\n")
    done = gml("connect", "c")
    assert done.returncode == 0, done.stderr
    assert user.read_text() == f"Include {home}/ssh_config\nHost other\n  Port 99\n"
    gml("connect", "c")
    assert user.read_text().count("Include") == 1
    words = json.loads(gml("connect", "c", "--ide", "cursor", "--dry-run").stdout)["argv"]
    assert words == ["cursor", "--remote", "ssh-remote+c"]
    plain = subprocess.run(
        ["ssh", "-F", str(home / "ssh_config"), "c", "echo via plain ssh"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert plain.stdout == "via plain ssh\n"


def test_ctrl_c_before_the_job_runs_deletes_the_node(hosts, repo, fleet, monkeypatch):
    from gml.request import NodeRequest
    from gml.run import Console, Runner, RunRequest

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gml.remote.sync.push", interrupted)
    node_request = NodeRequest("local", 600, provider="local", zone="box", name="ci")
    with pytest.raises(KeyboardInterrupt):
        request = RunRequest(command="true", job="j", folder=repo, dest="w")
        Runner(fleet, request, Console()).run(None, node_request)
    assert fleet.list_live().nodes == []


def test_a_job_name_in_use_is_refused_before_the_code_is_changed(hosts, repo, gml):
    assert gml(*CREATE, "--name", "u").returncode == 0
    first = ("run", "--node", "u", "--job", "j", "--detach", "--", "sleep 60")
    assert gml(*first, cwd=repo).returncode == 0
    (repo / "later.py").write_text("x\n")
    done = gml("run", "--node", "u", "--job", "j", "--", "true", cwd=repo)
    assert (done.returncode, "has a job 'j' already" in done.stderr) == (2, True), done.stderr
    assert not (hosts[0].home / "repo" / "later.py").exists()
    assert gml("node", "delete", "u").returncode == 0


@pytest.mark.slow
def test_exec_all_trains_with_four_jax_processes(hosts, fleet, gml):
    pytest.importorskip("jax")
    from tests.fakes.sshd import free_port

    node = make_local(fleet, "slice", "jx")
    train = Path(__file__).parent / "jax_train.py"
    for server in hosts:
        (server.home / "jax_train.py").write_bytes(train.read_bytes())
    done = gml(
        "exec", node.id, "--all", "--port", str(free_port()), "--",
        f"JAX_PLATFORMS=cpu {sys.executable} jax_train.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    losses = [json.loads(x.split("] ", 1)[1]) for x in done.stdout.splitlines() if "first" in x]
    assert len(losses) == 4 and all(x["processes"] == 4 for x in losses)
    assert len({x["last"] for x in losses}) == 1
    assert losses[0]["last"] < losses[0]["first"] / 10


@pytest.mark.parametrize(
    "lost", ["reader", "terminal", pytest.param("reader and Ctrl-C", marks=pytest.mark.slow)]
)
def test_a_run_that_nobody_watches_any_more_is_brought_to_its_end(hosts, repo, gml, home, lost):
    """`gml run … 2>&1 | tee log`: without its reader the job goes on, and the node is deleted."""
    (repo / "slow.sh").write_text("echo begun; sleep 1; mkdir -p runs; echo r > runs/r; echo end\n")
    git(repo, "add", "slow.sh")
    words = ["run", "-p", "local", "--zone", "box", "--timeout", "1h", "--name", "w", "--"]
    before = "begun" if lost == "reader" else "sending code"
    if before == "sending code":
        (repo / "big.bin").write_bytes(os.urandom(8_000_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "gml", *words, "bash slow.sh"],
        cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if before in line.decode():
            break
    process.stdout.close()
    if lost != "reader":
        process.send_signal(signal.SIGHUP if lost == "terminal" else signal.SIGINT)
    code = process.wait(timeout=120)
    assert json.loads(gml("ls", "--json").stdout)["nodes"] == []
    assert not (hosts[0].home / ".gml" / "node").exists()
    if lost == "reader":
        assert code == 0 and (repo / "runs" / "r").read_text() == "r\n"
    else:
        assert code == 130

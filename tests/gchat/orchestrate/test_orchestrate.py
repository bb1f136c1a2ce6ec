"""`gchat orchestrate`: turns, order, and nothing that outlives its turn."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from disks import fill, small_disk
from gchat.__main__ import main
from gchat.orchestrate import plan as plans
from gchat.orchestrate.command import Orchestrate
from gchat.orchestrate.store import Store
from orchestrated import sh, write

# Hides in every way that a process can: a session of its own, a dead parent, no environment, deaf
# to SIGTERM, and stopped. Each writes its process id.
TREE = """
sh -c 'echo $$ >> pids; exec sleep 600' &
setsid sh -c 'echo $$ >> pids; exec sleep 600' &
(setsid sh -c 'echo $$ >> pids; exec sleep 600' &)
(setsid env -i sh -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 600; done' &)
(setsid sh -c 'echo $$ >> pids; kill -STOP $$; sleep 600' &)
(setsid env -i sh -c '(setsid sh -c "trap : TERM; echo \\$\\$ >> pids; sleep 600; sleep 600" &)' &)
while [ "$(wc -l < pids)" -lt 6 ]; do sleep 0.02; done
"""


def alive(pids):
    """Those of `pids` that still run; one may end at any moment between two questions about it."""

    def runs(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if runs(pid)]


def facts(path, capsys):
    capsys.readouterr()
    assert main(["orchestrate", "status", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def states(path, capsys):
    return {one["name"]: one["state"] for one in facts(path, capsys)["workloads"]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_of_a_turn_outlives_it(here, capsys):
    next_one = "for p in $(cat pids); do kill -0 $p && echo $p; done > alive 2>/dev/null; true"
    path = write(here, {
        "tree": sh(TREE + "exit 0", grace="0.3s"),
        "next": sh(next_one, after=["tree"]),
    })  # fmt: skip
    assert main(["orchestrate", str(path)]) == 0
    pids = [int(line) for line in (here / "pids").read_text().split()]
    assert len(pids) == 6 and not alive(pids)
    assert (here / "alive").read_text() == ""  # nor was one left when the next began
    result = facts(path, capsys)["turns"][0]["result"]
    assert result["status"] == 0 and len(result["left_over"]) >= 6 and result["killed"] >= 2
    # Who went on adopting orphans and asked for none would keep each one's process id for ever.
    adopts = ctypes.c_int(1)
    ctypes.CDLL(None).prctl(37, ctypes.byref(adopts), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
    assert not adopts.value


def test_order_dependencies_repetition_and_failures(here, capsys, monkeypatch):
    monkeypatch.setattr("gchat.orchestrate.store.FIRST_PAUSE_S", 0.05)
    note = "echo $0 >> order"
    work = lambda name, **more: {"command": ["sh", "-c", note, name], **more}  # noqa: E731
    path = write(here, {
        "low": work("low", priority=-1),
        "twice": work("twice", times=2),
        "high": work("high", priority=5),
        "follows": work("follows", each="twice"),
        "last": work("last", priority=9, after=["low", "twice"]),
        "shaky": sh("echo shaky >> order; test $(grep -c shaky order) -ge 2", priority=4),
        "never": sh("exit 7", retries=0, priority=3),
        "missing": {"command": "no-such-program-anywhere", "retries": 0},
        "nowhere": {"command": "true", "directory": "no-such-folder", "retries": 0},
        "waits": work("waits", after=["never"]),
    })  # fmt: skip
    assert main(["orchestrate", str(path)]) == 1
    said = capsys.readouterr()
    assert "never, missing, nowhere failed for good" in said.err
    order = (here / "order").read_text().split()
    assert order[0] == "high" and order.count("shaky") == 2 and "waits" not in order
    assert [n for n in order if n in ("twice", "follows")] == ["twice", "follows"] * 2
    assert order.index("low") < order.index("last") == len(order) - 1
    state = facts(path, capsys)
    by_name = {one["name"]: one for one in state["workloads"]}
    assert by_name["never"]["state"] == "failed" and "status 7" in by_name["never"]["message"]
    assert "no-such-program" in by_name["missing"]["message"]
    assert "no-such-folder: No such file" in by_name["nowhere"]["message"]
    assert by_name["waits"]["blocked"] == "never has failed"
    # Again: nothing that is done runs again; what failed may be put back.
    before = (here / "order").read_text()
    assert main(["orchestrate", "add", str(path), "never"]) == 0
    assert main(["orchestrate", str(path)]) == 1
    assert (here / "order").read_text() == before
    assert main(["orchestrate", "add", str(path), "low"]) == 2
    assert "workload 'low' is done" in capsys.readouterr().err


def test_slices_take_turns_and_resume(here, capsys):
    train = """
    trap 'echo saved >> log; exit 0' TERM
    echo "$0" >> log; touch begun
    i=0; while [ $i -lt 400 ]; do sleep 0.02; i=$((i+1)); [ "$(grep -c saved log)" -ge 2 ] && break
    done
    touch finished
    """
    path = write(here, {
        "train": {"command": ["sh", "-c", train, "fresh"], "resume": ["sh", "-c", train, "again"],
                  "begun": "begun", "done": "finished", "slice": 0.3, "priority": 1},
        "judge": sh("echo judged >> log", each="train"),
    })  # fmt: skip
    assert main(["orchestrate", str(path)]) == 0
    expected = ["fresh", "saved", "judged", "again", "saved", "judged", "again", "judged"]
    # A judge of priority 0 waits behind a train of priority 1 only while that one waits longer.
    log = (here / "log").read_text().split()
    assert sorted(log) == sorted(expected) or log.count("judged") in (1, 2, 3)
    assert log[0] == "fresh" and log.count("fresh") == 1 and log[-1] == "judged"
    assert states(path, capsys)["train"] == "done"


@pytest.mark.slow
def test_a_limit_ends_a_turn_that_hangs(here, capsys):
    path = write(here, {
        "hangs": sh("trap '' TERM; while :; do sleep 600; done", limit=0.3, grace=0.2, retries=0),
    })  # fmt: skip
    assert main(["orchestrate", str(path)]) == 1
    one = facts(path, capsys)["workloads"][0]
    assert (one["state"], one["message"]) == ("failed", "it ran into its limit")


def start(path, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "gchat", "orchestrate", str(path), *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize("victims", ["orchestrator", pytest.param("both", marks=pytest.mark.slow)])
def test_a_killed_orchestrator_leaves_nothing_and_goes_on(here, capsys, victims):
    path = write(here, {
        "tree": sh("rm -f pids; touch pids\n" + TREE + "[ -e go ] || sleep 600; echo ran >> ran",
                   grace="0.3s"),
    })  # fmt: skip
    process = start(path)
    wait_for(lambda: (here / "pids").exists() and (here / "pids").read_text().count("\n") == 6)
    guard = next(one for one in psutil.Process(process.pid).children()
                 if "gchat.orchestrate.warden" in one.cmdline())  # fmt: skip
    process.kill()
    if victims == "both":
        guard.kill()
    process.wait()
    process.stdout.close()
    pids = [int(line) for line in (here / "pids").read_text().split()]
    if victims == "orchestrator":  # the warden heard of it, and swept
        wait_for(lambda: not alive(pids))
    (here / "go").touch()
    assert main(["orchestrate", str(path)]) == 0
    assert (here / "ran").read_text() == "ran\n"
    assert states(path, capsys) == {"tree": "done"}
    # Two of the six shed their environment and both guardians died: those no one can know.
    assert len(alive(pids)) <= (2 if victims == "both" else 0)
    for pid in alive(pids):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_stop_add_and_wait_while_it_runs(here, capsys):
    path = write(here, {
        "long": sh("trap 'exit 0' TERM; touch began; while :; do sleep 0.05; done"),
    })  # fmt: skip
    process = start(path, "--wait")
    wait_for((here / "began").exists)
    add = ["orchestrate", "add", str(path), "more", "--command", "touch added"]
    assert main(add) == 0 and main(add) == 2
    assert main(["orchestrate", "stop", str(path), "long"]) == 0
    wait_for((here / "added").exists)
    assert main(["orchestrate", str(path)]) == 2  # one at a time
    assert "is being written by process" in capsys.readouterr().err
    assert main(["orchestrate", "stop", str(path)]) == 0
    assert process.wait(240) == 0
    assert "go on with" in process.stdout.read()
    process.stdout.close()
    assert states(path, capsys) == {"long": "stopped", "more": "done"}


# ── Plans and states that cannot work ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "has no workloads"),
        ({"workloads": {"a": {}}}, "workload 'a' has no command"),
        ({"workloads": {"a b": {"command": "x"}}}, "'a b' has no usable name"),
        ({"workloads": {"a": {"command": "x", "priorty": 1}}}, "did you mean 'priority'"),
        ({"workloads": {"a": {"command": "x 'y"}}}, "mend its quotes"),
        ({"workloads": {"a": {"command": "x", "slice": "soon"}}}, "slice is 'soon'"),
        ({"workloads": {"a": {"command": "x", "slice": "2h", "limit": "1h"}}}, "not below limit"),
        ({"workloads": {"a": {"command": "x", "after": ["b"]}}}, "waits for 'b', which is none"),
        ({"workloads": {"a": {"command": "x", "each": "a"}}}, "wait for each other"),
        ({"workloads": {"a": {"command": "x", "retries": -1}}}, "retries is -1"),
        ({"workloads": {"a": {"command": "x"}}, "aging": "fast"}, "aging is 'fast'"),
        ({"workloads": {"a": {"command": "x"}}, "folders": "y"}, "did you mean 'folder'"),
        ({"workloads": {"a": {"command": "x", "times": 3, "done": "f"}}}, "a file `done`"),
    ],
)
def test_a_plan_that_cannot_work_is_one_line(here, change, problem, capsys):
    path = here / "plan.yaml"
    path.write_text(yaml.safe_dump(change))
    assert main(["orchestrate", str(path)]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert [one.name for one in here.iterdir()] == ["plan.yaml"]


def test_work_that_a_plan_names_twice_is_refused(here, capsys):
    (here / "plan.yaml").write_text("workloads:\n  a: {command: x}\n  a: {command: y}\n")
    assert main(["orchestrate", str(here / "plan.yaml")]) == 2
    assert "the key 'a' is given twice" in capsys.readouterr().err


def test_a_stop_that_nobody_takes_up_stops_no_later_start(here, capsys):
    path = write(here, {"one": sh("touch ran")})
    store = Store(here / "plan.work", make=True)
    store.ask("stop")  # its process ended before it looked
    store.close()
    assert main(["orchestrate", "stop", str(path)]) == 0
    assert "the orchestrator is not running already" in capsys.readouterr().out
    assert main(["orchestrate", str(path)]) == 0 and (here / "ran").exists()


def test_going_on_names_the_folder_of_the_state(here, capsys):
    path = write(here, {"one": sh("true")})
    folder = here / "other place"
    store = Store(folder, make=True)
    command = Orchestrate(path, folder=folder, wait=True)
    command._say_end(store, plans.read(path, folder), finished=False)
    store.close()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"  gchat orchestrate {path} --folder '{folder}' --wait"


def test_a_dry_run_prints_the_order_and_starts_nothing(here, capsys):
    path = write(here, {
        "a": sh("touch ran", after=["b"]), "b": sh("touch ran", priority=-3, slice="90m"),
    })  # fmt: skip
    assert main(["orchestrate", str(path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("b ") and "1:30:00" in lines[1] and lines[2].startswith("a ")
    assert list(here.iterdir()) == [path]
    assert main(["orchestrate", "status", str(path)]) == 2
    assert "holds no work" in capsys.readouterr().err


def test_a_state_of_another_version_is_refused_whole(here, capsys):
    path = write(here, {"a": sh("true")})
    store = Store(here / "plan.work", make=True)
    with store._write():
        store._db.execute("update meta set value = '99' where key = 'version'")
    store.close()
    assert main(["orchestrate", str(path)]) == 2
    assert "is of version 99" in capsys.readouterr().err
    state = here / "plan.work/orchestrate.db"
    state.write_text("no database at all" * 99)
    for words in ([], ["status"], ["add", "--command", "x"], ["stop"]):
        place = [*words[:1], str(path), *(["b"] * (words[:1] == ["add"])), *words[1:]]
        assert main(["orchestrate", *place]) == 2
        error = capsys.readouterr().err
        assert "orchestrate.db cannot be read (file is not" in error and error.count("\n") == 1
    assert state.read_text() == "no database at all" * 99


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_state_goes_on(here, capsys):
    with small_disk(here / "disk", "1M") as disk:
        path = write(disk, {"a": sh("touch ran", directory=str(here))})
        assert main(["orchestrate", str(path)]) == 0
        path = write(disk, {"b": sh("touch more", directory=str(here))})
        fill(disk, leave=4096)
        assert main(["orchestrate", str(path)]) == 1
        error = capsys.readouterr().err
        assert "make room and start again" in error and error.count("\n") == 1
        (disk / "filler").unlink()
        assert main(["orchestrate", str(path)]) == 0
        assert (here / "more").exists()

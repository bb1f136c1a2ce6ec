"""`gchat orchestrate`: turns, order, and nothing that outlives its turn."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from gchat.__main__ import main
from gchat.orchestrate import choice, memory, plan, processes
from gchat.orchestrate.runner import Runner, judged
from gchat.orchestrate.store import Row, Store
from gchat.orchestrate.warden import Result

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


def write(folder, workloads, **more):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"workloads": workloads, **more}, sort_keys=False))
    return path


def sh(script, **more):
    return {"command": ["sh", "-c", script], **more}


def alive(pids):
    return [pid for pid in pids if psutil.pid_exists(pid)
            and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]  # fmt: skip


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
        "waits": work("waits", after=["never"]),
    })  # fmt: skip
    assert main(["orchestrate", str(path)]) == 1
    said = capsys.readouterr()
    assert "never, missing failed for good" in said.err
    order = (here / "order").read_text().split()
    assert order[0] == "high" and order.count("shaky") == 2 and "waits" not in order
    assert [n for n in order if n in ("twice", "follows")] == ["twice", "follows"] * 2
    assert order.index("low") < order.index("last") == len(order) - 1
    state = facts(path, capsys)
    by_name = {one["name"]: one for one in state["workloads"]}
    assert by_name["never"]["state"] == "failed" and "status 7" in by_name["never"]["message"]
    assert "no-such-program" in by_name["missing"]["message"]
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


def wait_for(condition, seconds=20):
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
    assert process.wait(20) == 0
    assert "go on with" in process.stdout.read()
    process.stdout.close()
    assert states(path, capsys) == {"long": "stopped", "more": "done"}


# ── Kills at every write ────────────────────────────────────────────────────────────────────────

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from gchat.orchestrate import store, runner, warden
at, where = int(sys.argv[1]), sys.argv[2]
count = 0

def tick():
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)

if where == "orchestrator":
    plain = store.Store._write
    @contextmanager
    def write(self):
        tick()
        with plain(self):
            yield
            tick()
        tick()
    store.Store._write = write
    start = runner.Runner._start
    def started(self, *given):
        tick()
        made = start(self, *given)
        tick()
        return made
    runner.Runner._start = started
    from gchat.__main__ import main
    status = main(["orchestrate", "plan.yaml"])
    Path("boundaries").write_text(str(count))
    sys.exit(status)
plain_start, plain_write, replace = warden._start, warden.write, os.replace
def started(*given):
    tick()
    made = plain_start(*given)
    tick()
    return made
def replaced(*given):
    tick()
    replace(*given)
    tick()
def written(*given):
    tick()
    plain_write(*given)
    tick()
warden._start, warden.write, os.replace = started, written, replaced
warden.main(sys.argv[3:])
"""
WORK = {
    "one": sh("echo one >> ran.tmp; sync; echo one >> ran; touch one.done", done="one.done"),
    "two": sh("echo two >> ran; touch two.done", done="two.done", after=["one"]),
}


def killed_once(folder, at, where):
    """Runs the plan with a kill at one boundary, then again; the runs that came to their end."""
    folder.mkdir()
    write(folder, WORK)
    (folder / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if where == "orchestrator":
        first = subprocess.run([sys.executable, "killed.py", str(at), where], cwd=folder,
                               env=environment, capture_output=True, text=True)  # fmt: skip
    else:
        guard = (sys.executable, "killed.py", str(at), where)
        once = folder / "used"

        class Once(Runner):
            def _start(self, turn, work, words):
                if not once.exists():
                    once.touch()
                    self._warden_command = list(guard)
                else:
                    self._warden_command = [sys.executable, "-m", "gchat.orchestrate.warden"]
                return super()._start(turn, work, words)

        first = run_here(folder, Once)
    again = run_here(folder, Runner)
    runs = (folder / "ran").read_text().split()
    turns = [t["outcome"] for t in opened(folder).turns(50)]
    return first, again, runs, turns


def opened(folder):
    return Store(folder / "plan.work")


def run_here(folder, runner_class):
    before = os.getcwd()
    os.chdir(folder)
    try:
        read = plan.read(Path("plan.yaml"))
        store = Store(read.folder, make=True)
        store.take_plan(read.workloads)
        return runner_class(store, read.folder, aging=1.0, say=lambda _: None).run()
    finally:
        store.close()
        os.chdir(before)


def check_killed(tmp_path, at, where):
    _, again, runs, turns = killed_once(tmp_path / f"{where}{at}", at, where)
    assert again and runs == ["one", "two"], (at, where, runs)  # none twice, none left out
    assert None not in turns
    return turns


@pytest.mark.parametrize(("at", "where"), [(8, "orchestrator")])
def test_a_kill_at_a_write_loses_and_repeats_nothing(tmp_path, at, where):
    check_killed(tmp_path, at, where)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["orchestrator", "warden"])
def test_kills_at_every_write_lose_and_repeat_nothing(tmp_path, where):
    at = 1
    while True:
        folder = tmp_path / f"{where}{at}"
        first, again, runs, turns = killed_once(folder, at, where)
        assert again and runs == ["one", "two"] and None not in turns, (at, runs, turns)
        if where == "orchestrator":
            if first.returncode == 0:  # it came to its end before the kill
                break
            assert first.returncode == -signal.SIGKILL
        elif "lost" not in turns and at > 6:
            break
        at += 1
    assert at > (20 if where == "orchestrator" else 6)


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────


def row(name, *, state="waiting", since=0.0, turns=0, covered=0, **fields):
    work = plan.workload(name, {"command": "true", **fields})
    return Row(work=work, place=0, origin="plan", state=state, since=since, not_before=0.0,
               turns=turns, runs=0, covered=covered, failures=0, lost=0, seconds=0.0,
               message="")  # fmt: skip


def test_waiting_raises_what_is_overtaken_for_ever():
    low, high = row("low", priority=0), row("high", priority=5, since=3600.0 * 4)
    assert choice.choose([low, high], 3600.0 * 4, 1.0)[0] is high  # 4 hours against 5 points
    high = row("high", priority=5, since=3600.0 * 5.5)
    assert choice.choose([low, high], 3600.0 * 5.5, 1.0)[0] is low
    assert choice.choose([low, high], 3600.0 * 5.5, 0.0)[0] is high  # without aging never


def test_what_follows_a_turn_waits_for_the_next_one():
    train, judge = row("train", turns=2), row("judge", each="train", covered=2)
    assert not choice.may_run(judge, [train, judge])
    judge = row("judge", each="train", covered=1)
    assert choice.choose([train, judge], 1.0, 1.0)[0] is judge  # before the next turn


@pytest.mark.parametrize(
    ("result", "why", "done", "outcome"),
    [
        (Result(), "", False, "done"),
        (Result(status=3), "", False, "failed"),
        (Result(status=-9), "", False, "failed"),
        (Result(stopped=True, status=-15), "slice", False, "yielded"),
        (Result(stopped=True), "limit", False, "failed"),
        (Result(status=3), "", True, "done"),
        (None, "", False, "lost"),
        (None, "", True, "done"),
        (Result(problem="the orchestrator is gone", stopped=True), "", False, "lost"),
        (Result(status=127, problem="x: No such file"), "", False, "failed"),
    ],
)
def test_outcomes(result, why, done, outcome):
    assert judged(result, why, done=done)[0] == outcome


def test_memory_is_waited_for():
    values = iter([[9000], [9000], [1200]])
    assert memory.wait_until_back(lambda: next(values), [1000], 5) == (True, [1200])
    assert memory.wait_until_back(lambda: [9000], [1000], 0.0) == (False, [9000])


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


def test_killing_finds_nothing_to_kill():
    assert processes.kill(list) == 0

"""An orchestrator and a warden that are killed at each of their writes: nothing lost or doubled."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gchat.orchestrate import plan
from gchat.orchestrate.runner import Runner
from gchat.orchestrate.store import Store
from orchestrated import sh, write

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


@pytest.mark.slow
@pytest.mark.parametrize("where", ["orchestrator", "warden"])
def test_kills_at_every_write_lose_and_repeat_nothing(tmp_path, where):
    at = 1
    while True:
        folder = tmp_path / f"{where}{at}"
        first, again, runs, turns = killed_once(folder, at, where)
        # None twice, none left out.
        assert again and runs == ["one", "two"] and None not in turns, (at, runs, turns)
        if where == "orchestrator":
            if first.returncode == 0:  # it came to its end before the kill
                break
            assert first.returncode == -signal.SIGKILL
        elif "lost" not in turns and at > 6:
            break
        at += 1
    assert at > (20 if where == "orchestrator" else 6)

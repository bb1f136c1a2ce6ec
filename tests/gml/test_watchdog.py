"""The shipped watchdog as a process, against a fake metadata server and a fake TPU API."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.cloud import TOKEN

SCRIPT = Path(__file__).parents[2] / "gml" / "watchdog" / "watchdog.py"
NODE = "projects/proj-123/locations/us-east5-b/nodes/gml-x"


class Machine:
    """The state folder, configuration and processes of one rented machine."""

    def __init__(self, folder: Path, server, **more) -> None:
        self.folder, self.server = folder, server
        self.state, self.jobs = folder / "state", folder / "jobs"
        self.jobs.mkdir()
        self.config = {
            "state_dir": str(self.state),
            "jobs_dirs": [str(self.jobs)],
            "metadata": f"{server.url}/metadata",
            "use_metadata": True,
            "grace_s": 1,
            "idle_s": 0,
            "tick_s": 0.05,
            "ssh_port": 1,
            "poweroff": ["touch", str(folder / "POWEROFF")],
            "delete": [{"method": "DELETE", "url": f"{server.url}/tpu/v2/{NODE}"}],
            **more,
        }
        server.cloud.put(NODE, {"name": NODE, "state": "READY", "labels": {"gml": "1"}})
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        path = self.folder / "watchdog.json"
        path.write_text(json.dumps(self.config))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(path)], stdout=log, stderr=log
            )
        return self.process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def add_job(self, name: str, script: str) -> subprocess.Popen:
        folder = self.jobs / name
        folder.mkdir()
        job = subprocess.Popen(["bash", "-c", script], start_new_session=True, cwd=folder)
        (folder / "pid").write_text(str(job.pid))
        return job

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def machine(tmp_path, server):
    made: list[Machine] = []

    def make(**more) -> Machine:
        made.append(Machine(tmp_path, server, **more))
        return made[-1]

    yield make
    for item in made:
        item.stop()


def wait(condition, looks: int = 4000) -> bool:
    """Looks every 20 ms. Counts looks, not time: a machine may stand still for a while."""
    for _ in range(looks):
        if condition():
            return True
        time.sleep(0.02)
    return False


def deadline_in(server, seconds: float) -> None:
    server.cloud.metadata["instance/attributes/gml-deadline"] = str(int(time.time() + seconds))


def test_it_deletes_its_own_node_at_the_deadline_with_the_machines_token(machine, server):
    deadline_in(server, 3600)
    m = machine()
    process = m.start()
    assert wait(lambda: (m.state / "beat").exists())
    assert NODE in server.cloud.resources
    ends = int(time.time()) + 2
    server.cloud.metadata["instance/attributes/gml-deadline"] = str(ends)
    deleted_at = []
    server.cloud.faults = lambda call: deleted_at.append(time.time()) if call.mutating else None
    assert process.wait(timeout=90) == 0, m.log()
    server.cloud.drain()
    assert NODE not in server.cloud.resources
    assert deleted_at[0] >= ends
    assert TOKEN not in m.log()
    assert not (m.folder / "POWEROFF").exists()


def test_jobs_get_sigterm_and_their_grace_first(machine, server):
    deadline_in(server, 3600)
    m = machine(grace_s=7200)  # the grace has begun, the deadline is far: no race between the two
    job = m.add_job(
        "j", "trap 'echo saved > out; exit 0' TERM; for i in $(seq 3000); do sleep 0.1; done"
    )
    m.start()
    assert wait(lambda: job.poll() is not None)
    assert (m.jobs / "j" / "out").read_text() == "saved\n"
    assert NODE in server.cloud.resources, "the node went before the job had its grace"
    deadline_in(server, -1)
    assert wait(lambda: m.process.poll() is not None)


def test_killed_and_rebooted_it_still_deletes(machine, server):
    deadline_in(server, 3)
    m = machine()
    for _ in range(3):
        process = m.start()
        assert wait(lambda: (m.state / "last_deadline").exists())
        process.send_signal(signal.SIGKILL)
        process.wait()
    # systemd restarts it; after a reboot the metadata server may be late, the file remembers.
    server.cloud.metadata.clear()
    time.sleep(2.5)
    m.start()
    assert wait(lambda: NODE not in server.cloud.resources or server.cloud.settle())


def test_denied_three_times_it_powers_off_and_goes_on_trying(machine, server):
    deadline_in(server, -1)
    server.cloud.denied = {"tpu:DELETE"}
    m = machine()
    m.start()
    assert wait(lambda: (m.folder / "POWEROFF").exists())
    assert m.log().count("-> 403") >= 3
    server.cloud.denied.clear()
    assert wait(lambda: m.process.poll() == 0)
    server.cloud.drain()
    assert NODE not in server.cloud.resources


@pytest.mark.parametrize("text", [None, "", "soon", "-5"])
def test_an_unreadable_deadline_is_past(machine, server, text):
    if text is not None:
        server.cloud.metadata["instance/attributes/gml-deadline"] = text
    m = machine()
    assert m.start().wait(timeout=90) == 0
    server.cloud.drain()
    assert NODE not in server.cloud.resources


def test_a_moments_outage_of_the_metadata_server_neither_ends_nor_prolongs(machine, server):
    deadline_in(server, 3600)
    m = machine()
    m.start()
    assert wait(lambda: (m.state / "last_deadline").exists())
    server.cloud.metadata.clear()
    time.sleep(0.5)
    assert m.process.poll() is None
    assert NODE in server.cloud.resources
    # Back again with another end, and away again before it: it is the last one heard that counts.
    ends = str(int(time.time()) + 2)
    server.cloud.metadata["instance/attributes/gml-deadline"] = ends
    assert wait(lambda: (m.state / "last_deadline").read_text() == ends)
    server.cloud.metadata.clear()
    assert wait(lambda: "deadline" in m.log())


def test_the_file_of_extend_wins_and_none_means_no_end(machine, server):
    deadline_in(server, -10)
    m = machine()
    m.state.mkdir()
    (m.state / "deadline").write_text("none")
    m.start()
    time.sleep(0.5)
    assert m.process.poll() is None
    (m.state / "deadline").write_text(str(int(time.time()) - 1))
    assert m.process.wait(timeout=90) == 0


@pytest.mark.parametrize(
    "path,value",
    [
        ("instance/preempted", "TRUE"),
        ("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_notices_reach_the_job_once(machine, server, path, value):
    deadline_in(server, 3600)
    m = machine()
    job = m.add_job(
        "j", "n=0; trap 'n=$((n+1)); echo $n > out' TERM; for i in $(seq 3000); do sleep 0.1; done"
    )
    m.start()
    assert wait(lambda: (m.state / "beat").exists())
    server.cloud.metadata[path] = value
    assert wait(lambda: (m.jobs / "j" / "out").exists())
    time.sleep(0.5)
    assert (m.jobs / "j" / "out").read_text() == "1\n"
    assert m.process.poll() is None
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def test_an_idle_machine_goes_a_busy_one_stays(machine, server):
    deadline_in(server, 3600)
    m = machine(idle_s=1)
    job = m.add_job("j", "sleep 2.5")
    m.start()
    time.sleep(1.8)
    assert m.process.poll() is None, m.log()
    job.wait()
    assert wait(lambda: "idle for 1 s" in m.log())
    assert m.process.wait(timeout=90) == 0


def load_module():
    spec = importlib.util.spec_from_file_location("watchdog_under_test", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("jump", [-86400, 86400, 0])
def test_a_jumping_wall_clock_never_prolongs(tmp_path, jump):
    module, wall, mono = load_module(), [1_000_000.0], [50.0]
    config = {
        "state_dir": str(tmp_path),
        "deadline": 1_000_600,
        "delete": [],
        "use_metadata": False,
    }
    dog = module.Watchdog(config, wall=lambda: wall[0], mono=lambda: mono[0])
    assert dog.remaining() == 600
    wall[0] += 300 + jump
    mono[0] += 300
    assert dog.remaining() == min(300, 300 - jump)
    mono[0] += 301
    wall[0] += 301
    assert dog.remaining() < 0


def test_a_deadline_set_by_a_wrong_clock_is_bounded_by_the_machines_own_time(tmp_path):
    module, wall, mono = load_module(), [1_000_000.0], [50.0]
    config = {
        "state_dir": str(tmp_path), "delete": [], "use_metadata": False,
        "deadline": 1_000_000 + 6 * 3600, "run_s": 3600,
    }  # fmt: skip

    def start():
        return module.Watchdog(config, wall=lambda: wall[0], mono=lambda: mono[0])

    dog = start()
    assert dog.remaining() == 3600
    wall[0] += 3000
    mono[0] += 3000
    assert dog.remaining() == 600
    # A reboot: another monotonic clock, and a wall clock that is not set yet.
    wall[0], mono[0] = 0.0, 5.0
    dog = start()
    assert dog.remaining() == 600
    # Moved by `gml node extend`, the deadline alone counts.
    wall[0] = 1_003_000.0
    (tmp_path / "deadline").write_text(str(1_000_000 + 7 * 3600))
    assert start().remaining() == 7 * 3600 - 3000


def test_a_job_that_ended_and_that_nobody_asked_for_keeps_no_machine():
    watchdog = load_module()
    ended, runs = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert watchdog.alive(str(runs.pid)) and not watchdog.alive(str(ended.pid))
    finally:
        runs.kill()
        runs.wait()
        ended.wait()
    assert not watchdog.alive(str(ended.pid))


def test_it_runs_on_old_pythons_and_needs_nothing():
    import ast

    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {n.split(".")[0] for n in names} <= set(sys.stdlib_module_names)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]


def test_the_startup_script_fits_into_ec2s_user_data_or_is_refused():
    from gml.errors import UsageError
    from gml.startup import startup_script

    assert len(startup_script({"note": "c" * 1000}, "k" * 1500, 16384)) <= 16384
    with pytest.raises(UsageError, match="the provider takes 16384"):
        startup_script({}, "k" * 16384, 16384)


def test_the_startup_script_installs_what_is_shipped(tmp_path):
    """Runs the script with its paths moved, and compares what it lays down."""
    from gml.startup import startup_script

    script = startup_script({"delete": [], "deadline": 5, "note": 'it\'s "quoted" $HOME'})
    for name in ("/opt/gml", "/var/lib/gml", "/etc/systemd/system"):
        (tmp_path / name[1:]).mkdir(parents=True)
        script = script.replace(name, f"{tmp_path}{name}")
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/systemctl\n')
    (fake / "systemctl").chmod(0o755)
    subprocess.run(["bash", "-c", script], check=True, env={"PATH": f"{fake}:{os.environ['PATH']}"})
    assert (tmp_path / "opt/gml/watchdog.py").read_text() == SCRIPT.read_text()
    assert (
        json.loads((tmp_path / "opt/gml/watchdog.json").read_text())["note"]
        == 'it\'s "quoted" $HOME'
    )
    assert "enable --now gml-watchdog.service" in (tmp_path / "systemctl").read_text()
    unit = (tmp_path / "etc/systemd/system/gml-watchdog.service").read_text()
    assert "Restart=always" in unit

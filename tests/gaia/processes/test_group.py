"""Processes find one another, or say on one line who is missing."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from gaia.errors import ConfigError, GaiaError
from gaia.processes import group as processes
from gaia.processes.agreement import Agreement
from gaia.processes.group import DistributedConfig, Group, take_options
from gaia.processes.rendezvous import RendezvousError, roll_call


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def together(*calls):
    """Each (count, index, seconds) in a thread of its own; their errors, None for none."""
    address, results = f"127.0.0.1:{free_port()}", {}

    def one(i, call):
        try:
            results[i] = roll_call(address, *call)
        except RendezvousError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[i] for i in range(len(calls))]


def test_everyone_comes():
    assert together((4, 2, 60), (4, 0, 60), (4, 3, 60), (4, 1, 60)) == [None] * 4


def test_the_missing_are_named_everywhere():
    said = together((4, 0, 1), (4, 2, 60))
    assert all("of 4 processes these did not join within 1 s: 1, 3" in text for text in said)
    assert "--join-seconds" in said[0]


def test_no_process_0():
    (said,) = together((2, 1, 0.5))
    assert said.startswith("process 0 at 127.0.0.1:") and "did not answer process 1" in said


def test_two_of_the_same_number_and_another_count():
    said = together((3, 0, 60), (3, 1, 60), (3, 1, 60))
    assert all("two processes call themselves 1" in text for text in said)
    said = together((2, 0, 60), (3, 1, 60))
    assert all("process 1 expects 3 processes, process 0 expects 2" in text for text in said)


def test_strangers_on_the_port_do_no_harm():
    address, done = f"127.0.0.1:{free_port()}", []
    first = threading.Thread(target=lambda: done.append(roll_call(address, 2, 0, 60)))
    first.start()
    port = int(address.split(":")[1])
    for greeting in (b"GET / HTTP/1.1\r\n\r\n", b""):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(greeting)
                break
            except ConnectionRefusedError:
                continue
    roll_call(address, 2, 1, 60)
    first.join()
    assert done == [None]


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RendezvousError, match=f"cannot listen on port {port}"):
            roll_call(f"127.0.0.1:{port}", 2, 0, 5)


@pytest.fixture
def bare(monkeypatch):
    """An environment in which nothing says that there are several processes."""
    known = ("JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS", "SLURM", "OMPI", "TPU", "KUBER")
    for name in [n for n in os.environ if n.startswith(known)]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_where_the_processes_come_from(bare):
    assert processes._resolve(DistributedConfig())[0] == DistributedConfig()
    bare.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8476")
    bare.setenv("JAX_NUM_PROCESSES", "4")
    bare.setenv("JAX_PROCESS_ID", "3")
    found = processes._resolve(DistributedConfig())[0]
    assert (found.coordinator, found.num_processes, found.process_id) == ("10.0.0.1:8476", 4, 3)
    found = processes._resolve(DistributedConfig("h:1", 2, 0))[0]
    assert (found.coordinator, found.num_processes, found.process_id) == ("h:1", 2, 0)
    assert processes.join(DistributedConfig(num_processes=1)).count == 1


def test_what_slurm_says_is_taken(bare):
    bare.setenv("JAX_PLATFORMS", "cpu")
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "node[001-004]",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "4",
    }.items():
        bare.setenv(name, value)
    found, devices = processes._resolve(DistributedConfig())
    assert (found.num_processes, found.process_id, devices) == (4, 2, [0])
    assert found.coordinator.startswith("node001:")


def test_options(bare):
    config, rest = take_options(
        ["cpu", "--coordinator", "h:1", "--depth", "3", "--num-processes=2", "--process-id", "1"]
    )
    assert config == DistributedConfig("h:1", 2, 1) and rest == ["cpu", "--depth", "3"]
    with pytest.raises(ConfigError, match="join_seconds is 0"):
        take_options(["--join-seconds", "0"])
    with pytest.raises(ConfigError):
        take_options(["--num-processes", "two"])
    with pytest.raises(ConfigError, match="not set: --coordinator, --process-id"):
        processes.join(DistributedConfig(num_processes=2))
    with pytest.raises(ConfigError, match="process_id is 5 of 2 processes"):
        processes.join(DistributedConfig("127.0.0.1:1", 2, 5))
    bare.setenv("JAX_NUM_PROCESSES", "many")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES is 'many'"):
        processes.join(DistributedConfig())


def test_alone():
    group = Group()
    assert group.first and group.broadcast(lambda: 3) == 3 and group.all_gather("x") == ["x"]
    agreement = Agreement(group, 0)
    assert agreement.due(0) == set()
    agreement.ask("stop")
    assert agreement.due(1) == {"stop"} and agreement.due(2) == set()
    group.abort(GaiaError("no"))
    group.close()


class Board:
    """The key-value part of several groups, in one process: what one tells, all see."""

    def __init__(self, count):
        self.live = {}
        self.groups = [Member(i, count, self.live) for i in range(count)]


class Member(Group):
    def __init__(self, index, count, live):
        super().__init__(index, count)
        self._live = live

    def tell(self, key, value):
        self._live[key] = value

    def forget(self, key):
        del self._live[key]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_all_stop_at_the_furthest_step_of_any(order):
    board = Board(3)
    members = [Agreement(group, 0) for group in board.groups]
    for member, finished in zip(members, (4, 6, 5), strict=True):
        assert not any(member.due(step) for step in range(finished + 1))
    members[2].ask("stop")
    for _ in range(4):
        for i in order:
            members[i].serve(dict(board.live))
    # Each was about to do one step more: the furthest is at 7.
    for member, finished in zip(members, (4, 6, 5), strict=True):
        seen = [member.due(step) for step in range(finished + 1, 8)]
        assert seen == [set()] * (6 - finished) + [{"stop"}]


def test_one_who_voted_waits_for_the_decision():
    board = Board(2)
    a, b = (Agreement(group, 0) for group in board.groups)
    assert not a.due(0) and not b.due(0) and not b.due(1)
    a.ask("save")
    for _ in range(2):
        a.serve(dict(board.live))  # asks, then votes 1; b has not
    seen = []
    waiting = threading.Thread(target=lambda: seen.append(a.due(1)))
    waiting.start()
    assert not seen
    for _ in range(3):
        b.serve(dict(board.live))
        a.serve(dict(board.live))
    waiting.join()
    assert seen == [set()] and a.due(2) == {"save"} and b.due(2) == {"save"}
    # and it can be asked for again
    a.ask("save")
    for _ in range(4):
        a.serve(dict(board.live))
        b.serve(dict(board.live))
    assert a.due(3) == {"save"} and b.due(3) == {"save"}
    a.serve(dict(board.live))
    assert {key.split("/")[2] for key in board.live} == {"1"}  # old rounds are swept up


TWO = """
import sys
from gaia.processes import group as processes
from gaia.processes.group import joined, DistributedConfig
from gaia.errors import GaiaError, run_cli
def main(args):
    with joined(DistributedConfig(args[0], 2, int(args[1]))) as group:
        print("out", group.broadcast(lambda: "from 0"), group.all_gather(group.index), flush=True)
        if args[2] == "fail" and group.index == 1:
            raise GaiaError("its disk is gone", "mend it")
        if args[2] == "fail":
            group.all_gather("never")
sys.exit(run_cli("two", main, sys.argv[1:]))
"""


def two(mode, env):
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, address, str(i), mode],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    return [(*p.communicate(), p.returncode) for p in started]


def test_two_processes_share_and_only_the_first_prints(user_environment):
    (out0, err0, status0), (out1, err1, status1) = two("", user_environment)
    assert (status0, status1) == (0, 0), err0 + err1
    assert out0 == "out from 0 [0, 1]\n" and out1 == ""


def test_an_error_of_one_process_ends_the_other(user_environment):
    (_, err0, status0), (_, err1, status1) = two("fail", user_environment)
    assert status0 == 2 and status1 != 0
    assert "process 1 failed: its disk is gone; mend it" in err0
    assert "two: its disk is gone; mend it" in err1
    assert "Traceback" not in err0 + err1

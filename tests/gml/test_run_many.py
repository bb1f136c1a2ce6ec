"""`gml run -n N`: one command on several machines, and a queue's workers on all of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gml.cli.run_many import words_of
from gml.request import NodeRequest
from gml.run import RunRequest

ROOT = Path(__file__).parents[2]
WORKER = """import os, sys
sys.path.insert(0, {root!r})
from gchat.queue import Rules, in_threads, open_queue, run_worker
import time
def do(payload):
    time.sleep(0.02)
    return {{"square": payload["n"] ** 2, "by": os.environ["GML_INDEX"]}}
with open_queue({queue!r}) as queue:
    tally, _ = run_worker(queue, in_threads(do, 2), Rules(concurrency=2, wait={wait}))
print("worker", os.environ["GML_INDEX"], "of", os.environ["GML_COUNT"], "did", tally.done)
"""


@pytest.fixture
def boxes(hosts, home):
    """Three machines of one's own."""
    listed = "\n".join(f'box{i} = ["{host.address}"]' for i, host in enumerate(hosts[:3]))
    config = home / "config.toml"
    head = config.read_text().partition("[local.hosts]")[0]
    config.write_text(f"{head}[local.hosts]\n{listed}\n")
    return hosts[:3]


def gml(repo, *words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "gml", *words], cwd=repo, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **more,
    )  # fmt: skip


def markers(hosts):
    return [host for host in hosts if (host.home / ".gml" / "node").exists()]


@pytest.mark.slow
def test_workers_of_a_queue_on_three_machines(boxes, repo, tmp_path):
    from gchat.queue import Item, open_queue

    path = str(tmp_path / "work.queue")
    with open_queue(path, create=True) as queue:
        queue.add(Item(f"i{n}", {"n": n}) for n in range(1200))
    (repo / "main.py").write_text(WORKER.format(root=str(ROOT), queue=path, wait=False))
    words = ["run", "-n", "3", "-p", "local", "--timeout", "1h", "--name", "fleet", "--json"]
    done = gml(repo, *words, "--", sys.executable, "main.py")
    out, err = done.communicate(timeout=250)
    assert done.returncode == 0, err
    nodes = json.loads(out)["nodes"]
    assert [node["node"] for node in nodes] == ["fleet-0", "fleet-1", "fleet-2"]
    assert all((node["exit_code"], node["deleted"]) == (0, True) for node in nodes)
    assert err.count(" of 3 did ") == 3 and "[fleet-1] " in err
    with open_queue(path) as queue:
        results = list(queue.results())
        assert {one.id: one.result["square"] for one in results} == {
            f"i{n}": n**2 for n in range(1200)
        }
        assert len(results) == 1200 and len({one.result["by"] for one in results}) > 1
    assert not markers(boxes)


@pytest.mark.slow
def test_the_first_bad_exit_code_is_that_of_all(boxes, repo):
    words = ["run", "-n", "2", "-p", "local", "--timeout", "1h"]
    done = gml(repo, *words, "--", 'exit "$((GML_INDEX * 7))"')
    _, err = done.communicate(timeout=200)
    assert done.returncode == 7, err
    assert "1 of 2 machines ended with exit code 0" in err and not markers(boxes)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--node", "x"], "--node names one machine, and -n asks for 2"),
        (["--attach", "x"], "--attach names one machine, and -n asks for 2"),
    ],
)
def test_one_machine_is_not_many(gml, words, line):
    refused = gml("run", "-n", "2", *words, "--", "true")
    assert refused.returncode == 2 and line in refused.stderr


def test_a_closed_stdout_blocks_no_machine(monkeypatch):
    """`gml run -n 3 … | head`: each run still reaches its end, where it deletes its machine."""
    from gml.cli import run_many

    # More than the 64 KiB that a pipe holds.
    child = "import sys; sys.stderr.write(('x' * 99 + '\\n') * 3000); print('{}')"
    begin = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda words, **more: begin([sys.executable, "-c", child], **more)
    )
    ours, theirs = os.pipe()
    os.close(ours)
    out = os.fdopen(theirs, "w")
    machine = run_many._Machine("n-0", ["run"], out)
    try:
        machine._process.wait(20)
        machine.wait()
        assert machine.outcome() == {"node": "n-0", "exit_code": 0}
    finally:
        machine._process.kill()
        machine.wait()
        machine._process.stdout.close()
        machine._process.stderr.close()
        with contextlib.suppress(OSError):
            out.close()


def test_options_are_passed_on_as_typed():
    typed = {
        "count": 3, "name": "x", "timeout_s": "90m", "spot": True, "sync": False, "git": True,
        "env": ["A=1", "B=2"], "fetch": None, "instance_type": "v6e-1", "max_price": 2.5, "job": "",
    }  # fmt: skip
    assert words_of(RunRequest, typed) == ["--env", "A=1", "--env", "B=2", "--no-sync"]
    assert words_of(NodeRequest, typed) == [
        "--instance-type", "v6e-1", "--timeout", "90m", "--spot", "--max-price", "2.5",
    ]  # fmt: skip

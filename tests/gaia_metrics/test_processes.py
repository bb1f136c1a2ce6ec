"""Processes that fork, end, crash and run a cell again; a damaged neighbour."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import gaia_metrics
from gaia_metrics import cli
from gaia_metrics.reading.local import LocalSource
from gaia_metrics.storage import segments

ROOT = Path(__file__).resolve().parents[2]


def python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out:  # a pipe would wait for forked workers
        done = subprocess.run(command, stdout=out, stderr=out, cwd=ROOT, timeout=120)
        out.seek(0)
        return done.returncode, out.read()


def values(folder):
    return [r for r in segments.read_all(folder / "metrics") if r.kind == "values"]


def test_a_forked_worker_that_lives_on_keeps_no_lock(tmp_path):
    """After finish() and after kill -9 of the parent, the folder is free: the run goes on there."""
    code, said = python(
        """
        import multiprocessing as mp, os, sys, time, gaia_metrics
        folder = sys.argv[1]
        run = gaia_metrics.init("p", "k", dir=folder, system_interval=0)
        run.log(0, {"a": 1.0})
        child = mp.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
        run.finish()
        again = gaia_metrics.init("p", "k", dir=folder, resume="must", system_interval=0)
        assert (str(again.dir), again.id, again.attempt) == (folder, run.id, 2), again.dir
        again.log(1, {"a": 2.0})
        other = mp.get_context("fork").Process(target=time.sleep, args=(60,))
        other.start()
        assert again.wait_durable(1)
        print(child.pid, other.pid, flush=True)
        os.kill(os.getpid(), 9)
        """,
        tmp_path / "k",
    )
    assert code == -9, said
    pids = [int(word) for word in said.splitlines()[-1].split()]
    try:
        os.kill(pids[1], 0)  # the worker lives
        run = gaia_metrics.init("p", "k", dir=tmp_path / "k", resume="must", system_interval=0)
        assert (run.dir, run.attempt, run.resume_step) == (tmp_path / "k", 3, 1)
        run.finish()
    finally:
        for pid in pids:
            os.kill(pid, 9)


@pytest.mark.parametrize(
    "how", ["fork", *(pytest.param(h, marks=pytest.mark.slow) for h in ("spawn", "forkserver"))]
)
def test_a_child_that_ends_normally_loses_nothing(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing as mp, sys, gaia_metrics
        def body(folder, fail):
            run = gaia_metrics.init("p", "c", dir=folder, system_interval=0)
            for step in range(100):
                run.log(step, {"a": float(step)})
            if fail:
                raise ValueError("boom")
        if __name__ == "__main__":
            for fail in (False, True):
                arguments = (f"{sys.argv[1]}/{fail}", fail)
                child = mp.get_context(sys.argv[2]).Process(target=body, args=arguments)
                child.start()
                child.join()
                assert child.exitcode == int(fail)
        """)
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path), how]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for fail, status in ((False, "finished"), (True, "crashed")):
        folder = tmp_path / str(fail)
        assert len(values(folder)) == 100
        assert json.loads((folder / "status.json").read_text())["status"] == status


def test_a_child_that_logs_to_its_parents_run_is_told(tmp_path):
    code, said = python(
        """
        import multiprocessing as mp, sys, gaia_metrics
        run = gaia_metrics.init("p", "k", dir=sys.argv[1], system_interval=0)
        child = mp.get_context("fork").Process(target=run.log, args=(0, {"a": 1.0}))
        child.start()
        child.join()
        run.finish()
        """,
        tmp_path / "k",
    )
    assert code == 0
    assert "log() in a forked child was dropped; record in the parent" in said


def test_a_cell_that_runs_again_closes_and_reopens(tmp_path, capfd):
    ids = set()
    for cell in range(3):
        run = gaia_metrics.init("nb", "nb", dir=tmp_path / "nb", system_interval=0)
        run.log(cell, {"a": float(cell)})
        ids.add((run.id, str(run.dir)))
    run.finish()
    assert len(ids) == 1 and run.attempt == 3
    assert [r.step for r in values(tmp_path / "nb")] == [0, 1, 2]
    assert "another process" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b'{"id": 3}', b"\xff"])
def test_a_damaged_run_disables_no_neighbour(tmp_path, content, capsys):
    for name in ("good", "bad"):
        run = gaia_metrics.init("p", name, dir=tmp_path / name, system_interval=0)
        run.log(1, {"a": 1.0})
        run.finish()
    (tmp_path / "bad/run.json").write_bytes(content)
    source = LocalSource(tmp_path)
    assert {r["status"] for r in source.runs()} == {"finished", "damaged"}
    assert source.series(["good"], ["a"])["value"] == [1.0]
    for words in (["ls"], ["show", "good"], ["compare", "good"], ["export", "good"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--dir", str(tmp_path)])
        assert not ended.value.code, words
    with pytest.raises(SystemExit) as ended:
        cli.main(["show", "bad", "--dir", str(tmp_path)])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_very_wide_line_has_its_last_step(tmp_path):
    run = gaia_metrics.init("p", "wide", dir=tmp_path / "wide", system_interval=0)
    for step in range(3):
        run.log(step, {f"layer{i}/norm": 0.1 + i for i in range(1500)})
    run.finish()
    assert LocalSource(tmp_path).runs()[0]["last_step"] == 2


def test_processes_of_a_fresh_run_have_one_id(tmp_path):
    def start(process, **options):
        return gaia_metrics.init(
            "p", "n", dir=tmp_path / "n", system_interval=0, process_index=process, **options
        )

    with pytest.raises(gaia_metrics.MetricsError, match="process_index=1 needs run_id"):
        start(1)
    assert not (tmp_path / "n").exists()
    runs = [start(process, run_id="20261120-d12") for process in (1, 0)]  # whoever comes first
    for run in runs:
        run.finish()
    assert {run.id for run in runs} == {gaia_metrics.run_info(tmp_path / "n")["id"]}
    runs = [start(process) for process in (1, 0)]  # the folder says which run it is
    for run in runs:
        run.finish()
    assert {run.id for run in runs} == {"20261120-d12"}


def test_sigterm_waits_for_a_finish_that_is_under_way(tmp_path):
    code, said = python(
        """
        import os, signal, sys, time
        import numpy as np
        import gaia_metrics
        class Terminating:
            def is_ready(self):
                return run._finished  # finish() waits for the thread
            def __array__(self, *_, **__):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # the handler has its turn
                return np.ones(5)
        run = gaia_metrics.init("p", "t", dir=sys.argv[1], system_interval=0)
        run.histogram(0, "w", Terminating())
        for step in range(50):
            run.log(step, {"a": 1.0})
        run.finish()
        time.sleep(60)
        """,
        tmp_path / "t",
    )
    assert code == -15, said
    assert [r.step for r in values(tmp_path / "t")] == list(range(50))
    assert len((tmp_path / "t/metrics.jsonl").read_bytes().splitlines()) == 50
    assert gaia_metrics.run_info(tmp_path / "t")["status"] == "finished"

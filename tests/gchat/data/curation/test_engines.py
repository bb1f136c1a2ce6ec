"""Curation on engines: lost tasks, kill -9, and datatrove's executors beside our own."""

import subprocess
import sys
import time

import pytest

from gaia.errors import ConfigError
from gchat.data.curation import engines, stages
from small_curation import content, run, write_corpus, written


def test_a_missing_engine_is_one_line(tmp_path):
    if engines_installed():
        pytest.skip("datatrove is installed here")
    write_corpus(tmp_path / "in", documents=3)
    with pytest.raises(
        ConfigError, match=r"needs datatrove; run `pip install -e '\.\[curate-ray\]'` in the clone"
    ):
        run(tmp_path, engine="datatrove-local")


def engines_installed():
    try:
        import datatrove  # noqa: F401
    except ImportError:
        return False
    return True


def test_lost_tasks_are_run_again_and_named_in_the_end(tmp_path, monkeypatch):
    """An engine that loses tasks: the missing ones come again; with no luck the stage stops."""
    calls = []

    def forgetful(engine, folder, name, job, tasks, workers):
        calls.append(len(tasks))
        for task in tasks[: len(tasks) // 2]:
            job(task)

    monkeypatch.setattr(engines, "_executor", forgetful)
    (tmp_path / stages.SCRATCH).mkdir()

    def job(task):
        stages.marker(tmp_path, "x", task).write_text("{}")

    with pytest.raises(engines.EngineError, match=r"x: 1 tasks of datatrove-ray .*\(numbers 7\)"):
        engines.run_stage("datatrove-ray", tmp_path, "x", job, range(8), 2, print)
    assert calls == [8, 4, 2]
    engines.run_stage("datatrove-ray", tmp_path, "x", job, range(7), 2, print)
    assert calls == [8, 4, 2]


CURATE = """
import sys
from pathlib import Path
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.sources import text
text.UNIT_BYTES = 1
if __name__ == "__main__":
    source, out, engine, workers = sys.argv[1:]
    curate(Options(out=Path(out), input=source, engine=engine, workers=int(workers)))
"""


def started(tmp_path, out, engine, workers, environment):
    script = tmp_path / "curate_it.py"
    script.write_text(CURATE)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(out), engine, str(workers)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


@pytest.mark.slow
def test_kill_9_during_curation_changes_nothing(tmp_path, user_environment):
    write_corpus(tmp_path / "in", files=10, documents=200)
    assert started(tmp_path, tmp_path / "whole", "local", 2, user_environment).wait() == 0
    kills = 0
    for markers in (2, 6, 11, 15):
        process = started(tmp_path, tmp_path / "cut", "local", 2, user_environment)
        while process.poll() is None:
            if len(list((tmp_path / "cut").glob(".curate/*-*.json"))) >= markers:
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills >= 2
    assert started(tmp_path, tmp_path / "cut", "local", 2, user_environment).wait() == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.slow
def test_the_datatrove_engine_gives_the_same(tmp_path, user_environment):
    pytest.importorskip("datatrove", reason="needs the extra curate-ray")
    write_corpus(tmp_path / "in", files=6, documents=50)
    for out, engine in (("local", "local"), ("trove", "datatrove-local")):
        assert started(tmp_path, tmp_path / out, engine, 2, user_environment).wait() == 0
    assert without_engine(tmp_path / "trove") == without_engine(tmp_path / "local")


def without_engine(folder):
    return {name: data for name, data in content(folder).items() if name != "report.json"}


@pytest.mark.slow
def test_a_ray_worker_killed_in_the_middle_loses_and_repeats_nothing(tmp_path, user_environment):
    """A Ray cluster of two workers; one of them gets kill -9 while it filters a unit."""
    ray = pytest.importorskip("ray", reason="needs the extra curate-ray")
    pytest.importorskip("datatrove", reason="needs the extra curate-ray")
    psutil = pytest.importorskip("psutil")
    write_corpus(tmp_path / "in", files=12, documents=1500)
    assert started(tmp_path, tmp_path / "whole", "local", 2, user_environment).wait() == 0
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = user_environment | {"RAY_ADDRESS": "127.0.0.1:6399", "RAY_DEDUP_LOGS": "0"}
    start = [*ray_command, "start", "--head", "--port=6399", "--num-cpus=2"]
    start += ["--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    subprocess.run(start, check=True, env=user_environment, capture_output=True)
    try:
        process = started(tmp_path, tmp_path / "cut", "datatrove-ray", 2, environment)
        killed = None
        while process.poll() is None and killed is None:
            time.sleep(0.05)
            if len(list((tmp_path / "cut").glob(".curate/filter-*.json"))) < 3:
                continue
            actors = {
                p.pid: p
                for p in psutil.process_iter(["cmdline"])
                if "RankWorker.run_for_rank" in " ".join(p.info["cmdline"] or [])
            }
            # datatrove works in a child of the actor, which bears its name.
            for actor in (p for p in actors.values() if p.ppid() not in actors):
                actor.kill()
                killed = actor.pid
                break
        assert killed is not None, "the work was over before a worker could be killed"
        assert process.wait() == 0
    finally:
        subprocess.run([*ray_command, "stop", "--force"], env=user_environment, capture_output=True)
    assert ray.__version__
    assert without_engine(tmp_path / "cut") == without_engine(tmp_path / "whole")
    ids = [row["id"] for row in written(tmp_path / "cut") if "-" in row["id"]]
    assert len(ids) == len(set(ids)) == 12 * 1500

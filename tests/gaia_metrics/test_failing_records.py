"""A record that cannot be taken is said and counted; whatever comes behind it is kept."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gaia_metrics
from gaia_metrics.recording.conversion import ready
from gaia_metrics.recording.watch import Watch, WatchConfig
from gaia_metrics.storage import jsonl

ROOT = Path(__file__).resolve().parents[2]


def lines(folder):
    return [jsonl.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


class Donated:
    """Behaves as a jax.Array that was donated: whatever it is asked raises."""

    def is_ready(self):
        raise RuntimeError("Array has been deleted")

    def __array__(self, *_, **__):
        raise RuntimeError("Array has been deleted")


class Deleted(Donated):
    """Behaves as a deleted jax.Array, which jaxlib does not survive being asked for readiness."""

    def is_deleted(self):
        return True

    def is_ready(self):
        pytest.fail("is_ready() of a deleted array ends the process")


def test_an_array_that_cannot_say_whether_it_is_ready_is_ready():
    assert ready(Donated()) and ready(Deleted())


@pytest.mark.parametrize("array", [Donated(), Deleted()])
def test_a_record_that_raises_stops_none_behind_it(tmp_path, array, capfd):
    run = gaia_metrics.init("p", "n", dir=tmp_path / "run", system_interval=0)
    run.log(0, {"a": 1.0})
    for step in range(1, 20):
        run.histogram(step, "w", array)
        run.log(step, {"a": 2.0, "b": array})
    assert run.wait_durable(19)
    run.finish()
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(20))
    assert gaia_metrics.run_info(tmp_path / "run")["status"] == "finished"
    assert run._worker.dropped == 19
    err = capfd.readouterr().err
    assert err.count("a record was dropped: RuntimeError: Array has been deleted") == 1
    assert err.count("b=") == 1


def test_a_sink_that_raises_costs_neither_lines_nor_the_end(tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(Watch, "values", broken)
    monkeypatch.setattr(Watch, "flush", broken)
    run = gaia_metrics.init("p", "n", dir=tmp_path / "run", system_interval=0)
    for step in range(10):
        run.log(step, {"a": 1.0})
    run.finish()
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(10))
    assert gaia_metrics.run_info(tmp_path / "run")["status"] == "finished"
    assert capfd.readouterr().err.count("a defect") == 2  # each kind once


def test_a_loss_whose_square_is_no_number_is_a_spike():
    said = []
    watch = Watch(lambda *alert: said.append(alert), WatchConfig())
    for step in range(60):
        watch.values(step, step, {"train/loss": 1e200 if step == 30 else 1.0}, False)
    assert [title for _, title, _ in said] == ["loss spike"]


def test_arrays_of_jax_that_are_donated_or_deleted(tmp_path):
    """In a process of its own: what jaxlib does with a deleted array can be its end."""
    code = """
        import sys
        import jax, jax.numpy as jnp
        import gaia_metrics
        donate = jax.jit(lambda p: p * 2, donate_argnums=0)
        run = gaia_metrics.init("p", "n", dir=sys.argv[1], system_interval=0)
        params, other = jnp.ones((1000,)), jnp.ones((8,))
        run.log(0, {"a": 1.0})
        assert run.wait_durable(0)
        for step in range(1, 20):
            run.histogram(step, "w", params)
            run.log(step, {"a": 1.0, "b": params})
            params = donate(params)
        other.delete()
        run.histogram(20, "w", other)
        run.log(20, {"a": 1.0, "b": other})
        assert run.wait_durable(20)
        run.finish()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(21))

"""Kills, resumes and a bad receiver: in the end every point is there, once.

The scenario is the benchmark's (tests/benchmarks/metrics_client.py, `faults`): the receiver is
down for the first half, then answers 500 and resets at random; the process is killed with -9 three
times and resumed at earlier steps; then `sync`.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def client():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("client", BENCHMARKS / "metrics_client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def check(result, points):
    assert result["fault_points"] == points
    assert (result["lost_points"], result["double_points"], result["wrong_points"]) == (0, 0, 0)
    assert result["killed_tail_durable"] and result["killed_tail_seconds"] < 3  # a loaded machine


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the pipes of killed children
def test_nothing_is_lost_in_the_database(client, tmp_path):
    check(client.faults(tmp_path, 80_000, database=True), 80_000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_million_points(client, tmp_path):
    check(client.faults(tmp_path, 1_000_000, database=True), 1_000_000)

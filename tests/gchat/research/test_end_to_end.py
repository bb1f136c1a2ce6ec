"""`gchat ladder` and `gchat research run` as users start them, on rungs of a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gchat.research import experiment

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
TINY = [
    "model.aspect_ratio=16", "model.head_dim=16", "model.seq_len=32", "optim.name=adamw",
    "optim.lr=0.003", "optim.warmup_steps=1", "training.batch_size=4", "eval.every_steps=0",
    "eval.tokens=400", "eval.sample_tokens=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    root = tmp_path_factory.mktemp("clone") / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "checkout", "-q", "-B", "main"], check=True)
    return root


@pytest.fixture
def gchat(clone, data_dir, user_environment):
    def run(*words, set=TINY):
        command = [sys.executable, "-m", "gchat", *words, "--data", str(data_dir), "--set", *set]
        environment = user_environment | {"PYTHONPATH": os.fspath(clone)}
        return subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_a_ladder_is_trained_fitted_and_held_against_its_last_rung(clone, gchat):
    words = (
        "ladder",
        "--depths",
        "1",
        "2",
        "3",
        "4",
        "5",
        "--seeds",
        "1",
        "2",
        "--hold-out",
        "--json",
    )
    done = gchat(*words, "--tokens-per-param", "0.2")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert [rung["depth"] for rung in facts["rungs"]] == [1, 2, 3, 4]
    said = facts["prediction"]
    assert said["low"] < said["high"] and said["measured"] > 0
    assert (clone / "runs" / "ladder" / "ladder.png").stat().st_size > 5000
    again = gchat(*words, "--tokens-per-param", "0.2")
    assert "10 of 10 cells are there already" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == facts


def test_several_ratios_are_a_law_of_two_axes_and_share_cells_with_one(clone, gchat):
    words = ("ladder", "--depths", "1", "2", "3", "4", "--seeds", "1", "2", "--out", "runs/two")
    both = gchat(*words, "--tokens-per-param", "0.2", "0.4", "--hold-out", "--json")
    assert both.returncode == 0, both.stderr
    facts = json.loads(both.stdout.splitlines()[-1])
    assert facts["points"] == 12 and len(facts["held_out"]) == 4
    assert (clone / "runs" / "two" / "ladder.png").stat().st_size > 5000
    one = gchat(*words, "--tokens-per-param", "0.2", "--json")
    assert one.returncode == 0, one.stderr
    assert "8 of 8 cells are there already" in one.stderr
    assert [r["depth"] for r in json.loads(one.stdout.splitlines()[-1])["rungs"]] == [1, 2, 3, 4]


def test_an_agent_s_experiments_are_kept_discarded_or_crash(clone, gchat):
    longer = "optim.warmup_steps=31"  # than the steps that are timed
    warm = [word for word in TINY if not word.startswith("optim.warmup_steps=")] + [longer]

    def one(text, *more):
        words = ("research", "run", "--minutes", "0.05", "--description", text, "--json", *more)
        done = gchat(*words, set=warm)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first = one("baseline")
    assert first["status"] == "keep" and first["best"] is None and first["tokens"] > 0
    model = clone / "gchat" / "model.py"
    plain = model.read_text()
    judge = clone / "gchat" / "evals" / "bpb.py"
    honest = judge.read_text()
    loop = clone / "gchat" / "research" / "experiment.py"
    whole = loop.read_text()
    settings = clone / "gaia" / "config.py"
    set_up = settings.read_text()
    try:
        judge.write_text(honest + "\n\ndef evaluate(*_, **__):\n    return Score(0, 0, 1, 1, 1)\n")
        cheat = one("grades itself", "--margin", "1.0")
        assert cheat["status"] == "discard" and cheat["bpb"] > 0.5
        judge.write_text(honest)
        model.write_text("import no_such_module\n" + plain)
        loop.write_text("raise SystemExit(0)\n")
        broken = one("does not start")
        assert broken["status"] == "crash" and "no_such_module" in broken["error"]
        settings.write_text("def\n")
        worse = one("cannot be imported")
        assert worse["status"] == "crash" and "SyntaxError" in worse["error"]
    finally:
        settings.write_text(set_up)
        model.write_text(plain)
        judge.write_text(honest)
        loop.write_text(whole)
    rows = experiment.read(clone / "runs" / "research" / "results.tsv")
    assert [row.status for row in rows] == ["keep", "discard", "crash", "crash"]
    diff = (clone / "runs" / "research" / rows[2].diff).read_text()
    assert "+import no_such_module" in diff

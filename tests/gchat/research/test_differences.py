"""Differences that forbid to compare two runs, and tokens that equal time buys."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gaia.errors import GaiaError
from gchat.config import CONFIG
from gchat.research import compare, worktrees
from gchat.research.cells import Result
from gchat.research.source_tree import Code


def trained(folder, name, **config):
    run = folder / name
    run.mkdir()
    (run / CONFIG).write_text(yaml.safe_dump(config))
    return [Result("i", name, "", 1, "done", 2.0, 100, 1.0, 1.0, run_dir=str(run))]


def test_data_tokenizer_and_evaluation_must_agree_and_places_need_not(tmp_path):
    same = {"data": {"vocab_size": 300, "cache_dir": "a"}, "eval": {"tokens": 400}}
    runs = {
        "main": trained(tmp_path, "main", **same, optim={"lr": 1.0}),
        "rate": trained(tmp_path, "rate", **same, optim={"lr": 2.0}),
        "place": trained(tmp_path, "place", **same | {"data": same["data"] | {"cache_dir": "b"}}),
        "ids": trained(tmp_path, "ids", **same | {"data": same["data"] | {"vocab_size": 500}}),
        "text": trained(tmp_path, "text", **same | {"eval": {"tokens": 40}}),
        "failed": [Result("i", "failed", "", 1, "failed", None, 0, 0.0, 0.0)],
    }
    assert compare._differences(runs) == [
        "data.vocab_size is 300 in main and 500 in ids",
        "eval.tokens is 400 in main and 40 in text",
    ]


def test_a_run_that_lost_its_config_is_one_line(tmp_path):
    runs = {"main": trained(tmp_path, "main", data={}), "idea": trained(tmp_path, "idea", data={})}
    (tmp_path / "idea" / CONFIG).unlink()
    with pytest.raises(GaiaError, match=f"lost its {CONFIG}") as refused:
        compare._differences(runs)
    assert "\n" not in str(refused.value)


def test_a_result_that_holds_its_measure_needs_no_folder():
    """It was trained on a rented machine, or somebody made room."""
    runs = {
        name: [Result("i", name, "", 1, "done", 2.0, 1, 1.0, 1.0, measure={"eval.tokens": tokens})]
        for name, tokens in (("main", 400), ("text", 40))
    }
    assert compare._differences(runs) == ["eval.tokens is 400 in main and 40 in text"]


def test_a_tree_that_is_another_one_s_twin_is_told():
    code = Code("/x", "c" * 40)
    trees = [worktrees.Tree(n, replace(code, path=n), options=o)
             for n, o in (("main", ()), (".", ()), ("+idea", ("--optim.lr=1",)))]  # fmt: skip
    assert [(tree.name, said.split(",")[0]) for tree, said in compare._twins(trees)] == [
        (".", "main")
    ]


def ended(seconds, start, flops=1.0, status="done"):
    return Result("i", "x", "", 1, status, 2.0, 1000, flops, seconds, start_seconds=start)


def axis_of_time(monkeypatch, **trained):
    """Rows of the axis, and the tokens that branches were trained on again."""
    asked = {}

    def train(trees, arguments, data_dir, seeds, folder, own):
        asked[trees[0].name] = own[trees[0].name]
        return {trees[0].name: [ended(30.0, 10.0)]}

    monkeypatch.setattr(compare, "_train", train)
    trees = [worktrees.Tree(name, Code("/x", "c" * 40)) for name in trained]
    words = ["cpu", "--training.tokens=1000"]
    rows = compare._again(trees, trained, "time", words, "d", [1], Path("f"), 0.95)
    return [row.note for row in rows], asked


def test_equal_time_leaves_out_what_a_start_costs(monkeypatch):
    notes, asked = axis_of_time(
        monkeypatch,
        main=[ended(30.0, 10.0)],
        compiles_long=[ended(90.0, 70.0)],
        slow=[ended(60.0, 20.0)],
        failed=[ended(1.0, 1.0, status="failed")],
    )
    assert notes == [
        "",
        "costs the same per token (1.000)",
        "2.00 of the cost per token, so --training.tokens=500",
    ]
    assert asked == {"slow": ("--training.tokens=500",)}


def test_a_commit_beside_itself_is_not_trained_again(monkeypatch):
    runs = [ended(30.0, 10.0), ended(50.0, 12.0)]  # seeds that another job slowed down
    notes, asked = axis_of_time(monkeypatch, main=runs, itself=runs)
    assert notes == ["", "costs the same per token (1.000)"] and not asked

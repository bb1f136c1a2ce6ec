"""Differences that forbid to compare two runs; tokens that equal FLOPs and equal time buy."""

from pathlib import Path

import pytest
import yaml

from gaia.errors import GaiaError
from gchat.config import CONFIG
from gchat.research import cells, compare, worktrees
from gchat.research.cells import Result


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


def ended(seconds, start, flops=1.0, status="done"):
    return Result("i", "x", "", 1, status, 2.0, 1000, flops, seconds, start_seconds=start)


def test_what_a_start_costs_is_paid_once_at_any_length():
    # 1,000 tokens: 20 s to start and 40 s to train; the budget of 40 s buys half of them.
    assert compare._afforded([ended(60.0, 20.0)], "time", 40.0) == 500
    assert compare._afforded([ended(60.0, 20.0)], "time", 100.0) == 2000
    assert compare._afforded([ended(60.0, 20.0)], "time", 20.0) == 0
    assert compare._afforded([ended(60.0, 20.0, flops=4.0)], "flops", 2.0) == 500
    runs = [ended(60.0, 20.0), ended(100.0, 20.0), ended(1.0, 1.0, status="failed")]
    assert compare._afforded(runs, "time", 40.0) == 375
    assert compare._afforded(runs[2:], "time", 40.0) is None


def test_axes_train_as_many_tokens_as_the_first_branch_s_budget_buys(monkeypatch):
    asked = {}

    def train(trees, arguments, data_dir, seeds, folder, own):
        asked[trees[0].name] = own[trees[0].name]
        return {trees[0].name: [ended(30.0, 10.0)]}

    monkeypatch.setattr(compare, "_train", train)
    trees = [
        worktrees.Tree(name, cells.Code("/x", "c" * 40), (1, 1, 0), ())
        for name in ("main", "same", "slow", "stuck")
    ]
    trained = dict(zip((tree.name for tree in trees), (
        [ended(30.0, 10.0)], [ended(30.5, 10.0)], [ended(60.0, 20.0)], [ended(90.0, 40.0)],
    ), strict=True))  # fmt: skip
    words = ["cpu", "--training.tokens=1000"]
    rows = compare._again(trees, trained, "time", words, "d", [1], Path("f"), 0.95)
    assert asked == {"slow": ("--training.tokens=250",)}
    assert [row.note for row in rows] == [
        "",
        "costs the same per token (1.025)",
        "4.00 of the cost per token, so --training.tokens=250",
        "no token at this budget: its start takes all of the 30 s",
    ]
    assert "no result, " in compare.shown(compare.Comparison(rows, (1,), 0.95, []))[4]

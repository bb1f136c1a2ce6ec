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
from gchat.research.statistics import power


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


def ended(seconds, start, flops=1.0, status="done", seed=1, bpb=2.0, tokens=1000, **machine):
    return Result("i", "x", "", seed, status, bpb if status == "done" else None, tokens, flops,
                  seconds, start_seconds=start, machine=machine)  # fmt: skip


def axis_of_time(monkeypatch, again=None, **trained):
    """Rows of the axis, and the tokens that branches were trained on again."""
    asked = {}
    again = again or [ended(30.0, 10.0)]

    def train(trees, arguments, data_dir, seeds, folder, own):
        asked[trees[0].name] = own[trees[0].name]
        return {trees[0].name: again}

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
        "not compared: no seed ended in both",
    ]
    assert asked == {"slow": ("--training.tokens=500",)}


def test_a_commit_beside_itself_is_not_trained_again(monkeypatch):
    runs = [ended(30.0, 10.0), ended(50.0, 12.0)]  # seeds that another job slowed down
    notes, asked = axis_of_time(monkeypatch, main=runs, itself=runs)
    assert notes == ["", "costs the same per token (1.000)"] and not asked


def test_time_that_was_not_equal_is_told(monkeypatch):
    """The branch trained again, and another job slowed it down."""
    slow = {"main": [ended(30.0, 10.0)], "slow": [ended(60.0, 20.0)]}
    notes, _ = axis_of_time(monkeypatch, again=[ended(38.0, 10.0)], **slow)
    assert notes[1].endswith("tokens=500, NOT EQUAL time: 1.40 of the first one's")
    notes, _ = axis_of_time(monkeypatch, again=[ended(30.9, 10.0)], **slow)
    assert notes[1].endswith("tokens=500")


def test_seconds_of_another_machine_are_not_compared(monkeypatch):
    main = [ended(30.0, 10.0, seed=1, cpu="A"), ended(30.0, 10.0, seed=2, cpu="A")]
    there = [
        ended(60.0, 10.0, seed=1, cpu="B", device="1 x cpu"),
        ended(60.0, 10.0, seed=2, cpu="B"),
    ]
    notes, asked = axis_of_time(monkeypatch, main=main, other=there)
    said = "NOT THE SAME MACHINE: cpu A and B (seeds 1, 2)"
    assert notes[1] == f"not compared: {said}" and not asked
    # One seed of two: only the other one says what a token costs.
    mixed = [there[0], ended(70.0, 10.0, seed=2, cpu="A")]
    notes, asked = axis_of_time(monkeypatch, again=there, main=main, other=mixed)
    assert asked == {"other": ("--training.tokens=333",)}
    assert notes[1].endswith(f"333, whether the time was equal cannot be said, {said}")


def row(name, axis, results, base):
    return compare._row(worktrees.Tree(name, Code("/x", "c" * 40)), axis, results, base, 0.95)


def seeds(*values, **more):
    return [ended(30.0, 10.0, seed=n, bpb=value, status="done" if value else "failed", **more)
            for n, value in enumerate(values, 1)]  # fmt: skip


def test_what_each_branch_spent_stands_beside_its_figure():
    main, other = seeds(2.0, 2.1), seeds(1.9, 2.0, tokens=1500, flops=2.5e12)
    rows = [row("main", "tokens", main, main), row("other", "tokens", other, main)]
    text = compare.shown(compare.Comparison(rows, (1, 2), 0.95, []))
    assert "1,500 tokens, 2.5e+12 FLOPs, 20.0 s" in text[2]
    assert "NOT EQUAL tokens: 1.50 of the first one's" in text[2]
    facts = compare.as_dict(compare.Comparison(rows, (1, 2), 0.95, []))["rows"][1]
    assert (facts["tokens"], facts["seconds"]) == ([1500, 1500], [30.0, 30.0])
    assert (facts["start_seconds"], facts["share_of_first"]) == ([10.0, 10.0], 1.5)


def test_the_machines_of_paired_results_are_told_on_every_axis():
    main, other = seeds(2.0, 2.1, jax="0.10.2"), seeds(1.9, 2.0, jax="0.10.1")
    note = row("other", "tokens", other, main).note
    assert note == "NOT THE SAME MACHINE: jax 0.10.2 and 0.10.1 (seeds 1, 2)"
    assert not row("other", "tokens", seeds(1.9, 2.0), main).note  # of an earlier version


def test_power_is_that_of_the_seeds_that_ended():
    main, whole, lacking = seeds(2.0, 2.1, 2.2), seeds(1.9, 2.0, 2.2), seeds(1.9, 2.0, None)
    rows = [row("main", "tokens", main, main), row("whole", "tokens", whole, main)]
    last = "a difference of two seed deviations would be found with probability"
    text = compare.shown(compare.Comparison(rows, (1, 2, 3), 0.95, []))
    assert text[-1] == f"3 pairs of seeds: {last} {power(2.0, 3):.2f}"
    comparison = compare.Comparison([*rows, row("lacking", "tokens", lacking, main)],
                                    (1, 2, 3), 0.95, [])  # fmt: skip
    assert compare.shown(comparison)[-2:] == [
        f"3 pairs of seeds of whole: {last} {power(2.0, 3):.2f}",
        f"2 pairs of seeds of lacking: {last} {power(2.0, 2):.2f}",
    ]
    assert comparison.found == power(2.0, 2)

"""Chinchilla's question on points of a known law, on the published ones, and bad tables."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gaia.errors import ConfigError
from gaia.storage.files import StorageError
from gchat.research import ladder_cli, scaling
from gchat.research.loss_fit import LossFit, fit
from gchat.research.scaling import Points, analyse, read_points, shown

POINTS = Path(__file__).parents[4] / "shared" / "data" / "chinchilla" / "points.csv"
TRUE = LossFit(e=1.8, a=480.0, alpha=0.35, b=2000.0, beta=0.37)


def made(noise=0.002, seed=0):
    """Four sizes at three ratios with two seeds, as a ladder trains them."""
    generator = np.random.default_rng(seed)
    n = np.repeat(np.array([1e7, 4e7, 1.6e8, 6.4e8]), 6)
    d = n * np.tile(np.repeat([5.0, 20.0, 80.0], 2), 4)
    return Points(n, d, TRUE.predict(n, d) * np.exp(noise * generator.standard_normal(len(n))))


def test_the_best_split_and_the_intervals_hold_the_truth():
    covered = 0
    for seed in range(3):
        said = analyse(made(seed=seed), draws=40)
        for name in ("alpha", "beta"):
            low, high = said.intervals[name]
            covered += low < getattr(TRUE, name) < high
        for split in said.splits:
            n, d = TRUE.best_split(split.flops)
            covered += split.params_interval[0] < n < split.params_interval[1]
            assert split.loss == pytest.approx(TRUE.predict(n, d), rel=0.02)
            assert 6 * split.params * split.tokens == pytest.approx(split.flops)
        assert [s.flops / said.splits[0].flops for s in said.splits] == pytest.approx([1, 10, 100])
    assert covered >= 10  # of 15, which are not independent


def test_a_held_out_size_is_predicted_within_its_interval():
    covered = 0
    for seed in range(3):
        points = made(seed=seed)
        last = points.params == points.params.max()
        for held in analyse(points.kept(~last), points.kept(last), draws=40).held_out:
            covered += held.low <= held.measured <= held.high
            assert held.said == pytest.approx(TRUE.predict(held.params, held.tokens), rel=0.03)
    assert covered >= 13  # of 18; with exact intervals fewer happen once in 5,000


def test_points_along_one_axis_are_refused_and_flat_ones_have_no_best_split():
    points = made()
    one = points.tokens / points.params < 6
    with pytest.raises(ConfigError, match=r"4 size\(s\) at 5 to 5 tokens to a parameter"):
        analyse(points.kept(one))
    steps = replace(points, tokens=points.tokens * np.linspace(1, 1.003, len(points.tokens)))
    with pytest.raises(ConfigError, match="do not tell the two axes apart"):
        analyse(steps.kept(one))  # tokens are whole steps: one ratio is never exactly one
    flat = Points(points.params, points.tokens, np.full(len(points.params), 2.0))
    assert any("no best split" in line for line in shown(analyse(flat, draws=10)))


def write(path, rows, header="params,tokens,loss"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("params,loss", ["1,2"], "no column 'flops'"),
        ("params,tokens,loss", [], "holds no rows"),
        ("params,tokens,loss", ["1e6,1e7,3", "1e6,,3"], "line 3: tokens is ''"),
        ("params,tokens,loss", ["1e6,1e7,-3"], "loss is '-3'"),
        ("params,tokens,loss", ["1e6,1e7"], "loss is None"),
    ],
)
def test_bad_tables_are_named(tmp_path, header, rows, said):
    with pytest.raises(ConfigError, match=said):
        read_points(write(tmp_path / "points.csv", rows, header))


def test_missing_files_and_too_many_left_out_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_points(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="1 of 1 points"):
        read_points(write(tmp_path / "points.csv", ["1e6,1e7,3"]), 1)


def test_the_command_on_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "analyse", partial(analyse, draws=20))
    points = made()
    rows = [
        f"{n},{c},{loss}"
        for n, c, loss in zip(points.params, points.flops, points.loss, strict=True)
    ]
    table = write(tmp_path / "points.csv", rows, "params,flops,loss")
    ladder_cli.ladder_main(["--points", str(table), "--out", str(tmp_path / "out"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["law"]["alpha"] == pytest.approx(
        fit(points.params, points.tokens, points.loss).alpha, rel=1e-3
    )
    assert (tmp_path / "out" / "ladder.png").stat().st_size > 5000
    assert json.loads((tmp_path / "out" / "ladder.json").read_text()) == facts


def test_an_out_that_is_a_file_is_one_line(tmp_path):
    points = made()
    rows = [f"{n},{d},{v}" for n, d, v in zip(*vars(points).values(), strict=True)]
    table = write(tmp_path / "points.csv", rows)
    with pytest.raises(StorageError, match=r"cannot write .*points.csv"):
        ladder_cli.ladder_main(["--points", str(table), "--out", str(table)])
    assert table.read_text().startswith("params")


def test_a_table_of_a_spreadsheet_begins_with_a_mark(tmp_path):
    table = tmp_path / "points.csv"
    table.write_text("params,tokens,loss\n1e6,1e7,3\n", encoding="utf-8-sig")
    assert read_points(table).loss.tolist() == [3.0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--points", "x.csv", "--seeds", "1"], "--seeds is given with --points"),
        (["--leave-out-worst", "5"], "without --points"),
        (["--predict", "6", "--tokens-per-param", "1", "2"], "several ratios"),
        (["--predict", "6", "--hold-out", "--depths", "1", "2", "3", "4", "5"], "with --hold-out"),
        (["--hold-out"], "leaves 3 of 4 depths to fit"),
        (["--predict", "0"], "--predict is 0"),
        (["--set", "training.seed=3"], "--set training.seed is given"),
        (["--set", "model.dim"], "is no FIELD=VALUE"),
    ],
)
def test_options_without_effect_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        ladder_cli.ladder_main(words)


def test_the_plan_says_sizes_and_tokens(capsys):
    ladder_cli.ladder_main(["--dry-run", "--tokens-per-param", "0.5", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[1].startswith("d2x1: ")
    params, tokens = (int(w.replace(",", "")) for w in (lines[1].split()[1], lines[1].split()[6]))
    assert abs(tokens / params - 1) < 0.01


@pytest.mark.skipif(not POINTS.exists(), reason="needs ../shared/data/chinchilla")
def test_chinchilla_s_points_through_the_command(tmp_path, capsys):
    """Besiroglu et al. 2024: the best split is near 20 tokens per parameter at its budgets."""
    with POINTS.open() as file:
        rows = [r for r in csv.DictReader(file) if r["loss"] and r["Training FLOP"]]
    lines = [f"{r['Model Size']},{r['Training FLOP']},{r['loss']}" for r in rows]
    table = write(tmp_path / "points.csv", lines, "params,flops,loss")
    words = ["--points", str(table), "--leave-out-worst", "5", "--out", str(tmp_path), "--json"]
    ladder_cli.ladder_main(words)
    facts = json.loads(capsys.readouterr().out)
    assert facts["law"]["E"] == pytest.approx(1.8172, abs=0.005)
    assert facts["law"]["alpha"] == pytest.approx(0.3478, abs=0.004)
    assert facts["law"]["beta"] == pytest.approx(0.3658, abs=0.004)
    split = facts["splits"][1]
    assert 10 < split["tokens"] / split["params"] < 40

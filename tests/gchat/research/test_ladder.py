"""Ladders: the law of rungs whose law is known, the held-out rung, and what is refused."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest

from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError, GaiaError
from gchat.research import ladder_cli, scaling, source_tree, worktrees
from gchat.research.cells import Result
from gchat.research.ladder import Rung, ladder_sweep, params_of, picture, predict, rung_words, shown

slow = partial(pytest.param, marks=pytest.mark.slow)
E, A, ALPHA, NOISE = 1.1, 60.0, 0.28, 0.003


def made(seed, depths=(2, 3, 4, 6, 8), seeds=3):
    generator = np.random.default_rng(seed)
    sizes = {depth: int(40_000 * depth**3) for depth in depths}
    return [
        Rung(d, n, tuple(E + A * n**-ALPHA + NOISE * generator.standard_normal(seeds)))
        for d, n in sizes.items()
    ]


def held_out(draws, **ladder):
    """Share of the intervals that hold a run of the last rung, and how far two ways are off."""
    covered, ours, straight = 0, [], []
    for seed in draws:
        *known, last = made(seed, **ladder)
        truth = E + A * last.params**-ALPHA
        said = predict(known, last.params, measured=last.mean, seed=seed)
        covered += said.low <= last.bpb[0] <= said.high
        ours.append(abs(said.bpb - truth))
        straight.append(abs(said.straight - truth))
    return covered / len(draws), np.median(ours), np.median(straight)


def test_the_law_beats_a_straight_line():
    _, ours, straight = held_out(range(10))
    assert ours < straight and ours < 2 * NOISE


@pytest.mark.slow
def test_the_interval_covers_the_held_out_rung():
    """At 95%, also where four rungs of two seeds say little of the noise: as if it were known,
    267 of these 300 held it."""
    covered, *_ = held_out(range(300), seeds=2)
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("losses", [(2.2, 1.9275, 1.6845, 1.4734), (2.2, 1.8999, 1.6036, 1.3381)])
def test_what_is_predicted_lies_in_its_interval(losses):
    """Also where no law with a floor describes the rungs, and two fits of one differ."""
    sizes = [40_000 * 2**i for i in range(5)]
    known = [
        Rung(i, n, (b - 0.002, b + 0.002))
        for i, (n, b) in enumerate(zip(sizes[:-1], losses, strict=True))
    ]
    said = predict(known, sizes[-1])
    assert said.low < said.bpb < said.high


def test_ratios_that_are_nearly_one_are_two():
    plan = ladder_sweep("cpu", (2, 3, 4, 5), (0.1234567, 0.12345671), (1,))
    assert len(plan.sizes) == 8


def test_what_is_shown(tmp_path):
    *known, last = made(0)
    said = predict(known, last.params, measured=last.mean)
    lines = shown(known, said)
    assert len(lines) == 1 + len(known) + 3
    assert f"off by {said.bpb - last.mean:+.4f}" in lines[-1] and "seed deviations" in lines[-1]
    picture(known, said, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 5000


def test_finished_rungs_of_a_preset_with_a_warm_up_make_a_ladder(tmp_path, data_dir, capsys):
    plan = ladder_sweep("cpu", (2, 3, 4, 5, 6), (1.0,), (1, 2))
    info = load_manifest(data_dir).tokenizer
    vocab = (info.vocab_size, info.padded_vocab_size)
    lines = []
    for cell in plan.cells(source_tree.code_at(worktrees.repository()), str(data_dir)):
        params, tokens = params_of(cell.arguments, vocab)
        bpb = E + A * params**-ALPHA + NOISE * cell.seed
        done = Result(cell.id, "ladder", cell.size, cell.seed, "done", bpb, tokens, 0, 0)
        lines.append(json.dumps(asdict(done) | {"arguments": list(cell.arguments)}) + "\n")
    (tmp_path / "results.jsonl").write_text("".join(lines))
    words = ["--depths", "2", "3", "4", "5", "6", "--data", str(data_dir), "--out", str(tmp_path)]
    ladder_cli.ladder_main([*words, "--hold-out", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert [rung["depth"] for rung in facts["rungs"]] == [2, 3, 4, 5]
    assert facts["prediction"]["bpb"] == pytest.approx(facts["prediction"]["measured"], abs=NOISE)
    ladder_cli.ladder_main(words)
    told = capsys.readouterr().out
    following = params_of((*plan.arguments, *rung_words(7, 1.0)), vocab)[0]
    assert f"at {following:,}: " in told and len(lines) == 10


def two_axes(folder, data_dir, monkeypatch, *more, **statuses):
    """`gchat ladder` of 24 trainings, of which `statuses` says how some of them end."""
    info = load_manifest(data_dir).tokenizer
    vocab = (info.vocab_size, info.padded_vocab_size)

    def run_cells(wanted, folder):
        made = []
        for cell in wanted:
            params, tokens = params_of(cell.arguments, vocab)
            bpb = E + A * params**-ALPHA + 40 * tokens**-0.3 + NOISE * cell.seed
            status = statuses.get(cell.size, statuses.get("others", "done"))
            made.append(Result(cell.id, "ladder", cell.size, cell.seed, status,
                               bpb if status == "done" else None, tokens, 0, 0,
                               arguments=list(cell.arguments)))  # fmt: skip
        return made

    monkeypatch.setattr(ladder_cli.sweeping, "run_cells", run_cells)
    monkeypatch.setattr(scaling, "analyse", partial(scaling.analyse, draws=2))
    monkeypatch.setattr(scaling, "picture", lambda *_: None)
    ratios = ["--tokens-per-param", "0.5", "1", "2"]
    ladder_cli.ladder_main([*ratios, "--data", str(data_dir), "--out", str(folder), *more])


def test_trainings_that_diverged_are_named_beside_the_law(tmp_path, data_dir, monkeypatch, capsys):
    statuses = {"d5x1": "diverged", "d5x2": "diverged"}
    two_axes(tmp_path, data_dir, monkeypatch, "--hold-out", **statuses)
    said, facts = capsys.readouterr().out, json.loads((tmp_path / "ladder.json").read_text())
    assert "law of 18 points" in said and said.count("held out, ") == 2
    assert "diverged, and no part of the law: d5x1 (seed 1), d5x2 (seed 1), d5x1 (seed 2), " in said
    assert len(facts["diverged"]) == 4 and {"size": "d5x2", "seed": 1} in facts["diverged"]


@pytest.mark.parametrize(
    ("statuses", "more", "problem", "remedy"),
    [
        ({"d5x1": "failed"}, (), "2 of 24 trainings did not end: d5x1", "run again"),
        slow({"d3x2": "interrupted"}, (), "2 of 24 trainings did not end: d3x2", "run again"),
        slow({"d4x1": "stopped"}, (), "2 of 24 trainings did not end: d4x1", "run again"),
        slow({"others": "failed"}, (), "24 of 24 .* and 16 more", "run again"),
        slow({"others": "diverged"}, (), "all 24 trainings diverged", "lower the learning rates"),
        slow({"d2x1": "done", "others": "diverged"}, (), "22 of 24 .* no law: 1 size", "lower"),
        slow(dict.fromkeys(("d5x0.5", "d5x1", "d5x2"), "diverged"), ("--hold-out",),
             "every training of depth 5 diverged, which was to be held", "leave out --hold-out"),
    ],
)  # fmt: skip
def test_a_law_that_would_lack_trainings_unsaid_is_refused(
    tmp_path, data_dir, monkeypatch, statuses, more, problem, remedy
):
    with pytest.raises(GaiaError, match=problem) as refused:
        two_axes(tmp_path, data_dir, monkeypatch, *more, **statuses)
    assert remedy in refused.value.remedy and "train two sizes" not in str(refused.value)


@pytest.mark.parametrize("depths", [(2, 3, 4), (2, 2, 3, 4)])
def test_too_few_rungs_are_refused(depths):
    with pytest.raises(ConfigError, match="depths are"):
        ladder_sweep("cpu", depths, (1.0,), (1,))


@pytest.mark.parametrize("ratios", [(), (1.0, 1.0), (0.0, 1.0), (float("nan"),)])
def test_ratios_that_cannot_work_are_refused(ratios):
    with pytest.raises(ConfigError, match="tokens-per-param"):
        ladder_sweep("cpu", (2, 3, 4, 5), ratios, (1,))


@pytest.mark.parametrize("seeds", [(), (1, 1), (1, -2), (2**32,)])
def test_seeds_that_cannot_work_are_refused(seeds):
    with pytest.raises(ConfigError, match=r"--seeds (is|has)"):
        ladder_sweep("cpu", (2, 3, 4, 5), (1.0,), seeds)

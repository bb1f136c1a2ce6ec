"""`gchat models`: labels that say what is in a snapshot, and a live picture of the run it is of."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import runs
from gchat.__main__ import main
from gchat.archive import card, compare
from gchat.run import judged
from gchat.run.loading import load_run

STEPS = 40


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A base run of 40 steps, judged at the last, and one that began with it."""
    place = tmp_path_factory.mktemp("runs")
    base, tuned = place / "base", place / "tuned"
    more = ("--checkpoint.keep", 9, "--run.name", "tiny war")
    words = runs.arguments(data_dir, base, *more, "--run.picture-seconds", 0.1, steps=STEPS)
    assert main(["train", *words]) == 0
    words = runs.arguments(data_dir, tuned, "--init-from", base, "--eval.every-steps", 0, steps=6)
    assert main(["train", *words]) == 0
    judgement = {"time": 1.0, "step": STEPS, "judge": "small", "answers": 50, "passed": 20,
                 "raw": 0.4, "rate": 0.35, "low": 0.2, "high": 0.5, "groups": {},
                 "verdicts": "v.jsonl"}  # fmt: skip
    judged.add(base, judgement)
    return base, tuned


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(words, capsys):
    capsys.readouterr()
    assert main(["models", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def plain_digest(run, step):
    """The hash of a run's parameters, from the documented recipe alone."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(load_run(str(run), step=step).params):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def test_a_snapshot_says_what_it_is_and_is_a_run(trained, here, capsys):
    base, tuned = trained
    last = told(["add", base, "--note", "first"], capsys)
    early = told(["add", base, "--step", 20, "--name", "early", "--status", "broken"], capsys)
    assert last["facts"]["weights"] == plain_digest(base, "last") != early["facts"]["weights"]
    assert early["facts"]["weights"] == plain_digest(base, "20")
    series = {name: dict(points) for name, points in judged.read_series(
        base / "metrics.jsonl").items()}  # fmt: skip
    assert last["metrics"]["val_bpb"] == series["eval/val_bpb"][STEPS]
    assert last["metrics"]["judge"]["rate"] == 0.35
    # Step 20 was not validated nor judged: figures of other steps are not its own.
    assert early["metrics"] == {"train_loss": series["train/loss"][20]}
    params = sum(leaf.size for leaf in jax.tree.leaves(load_run(str(base)).params))
    assert last["facts"]["params"] == params
    assert last["facts"]["tokens"] == STEPS * 4 * 32
    assert last["name"].startswith("tiny-war-0.0M-base-step40-bpb")
    child = told(["add", tuned], capsys)
    # `train --init-from` keeps no step of what it began with.
    assert child["lineage"] == [{"run": str(base), "step": None, "stage": "base"}]
    # It is a run, wherever the first one went.
    shutil.move(base, base.with_name("away"))
    try:
        folder = here / "models" / last["name"]
        assert main(["sample", "--run", str(folder), "--prompt", "the small", "--temperature", "0",
                     "--max-tokens", "4"]) == 0  # fmt: skip
        assert told(["show", last["name"], "--verify"], capsys)["verified"] is True
    finally:
        shutil.move(base.with_name("away"), base)
    assert sorted(p.name for p in (here / "models").iterdir()) == sorted(
        [last["name"], "early", child["name"]]
    )
    # Once more, over, and what others come from.
    assert main(["models", "add", str(base)]) == 2
    assert f"already, as {last['name']!r}" in capsys.readouterr().err
    heir = card.read(here / "models" / child["name"])
    heir.lineage[0]["model"] = last["name"]  # as of a stage, which keeps it
    card.write(here / "models" / child["name"], heir)
    assert main(["models", "rm", last["name"]]) == 2
    assert "come from" in capsys.readouterr().err
    assert main(["models", "rm", "early"]) == 0
    noted = told(["note", last["name"], "knows dates", "--status", "good"], capsys)
    assert [n["text"] for n in noted["notes"]] == ["first", "knows dates"]
    assert [c["name"] for c in told(["ls", "--status", "good"], capsys)["models"]] == [last["name"]]
    # Damage is found.
    path = here / "models" / last["name"] / card.FILE
    path.write_text(path.read_text().replace(last["facts"]["weights"], "0" * 64))
    assert main(["models", "show", last["name"], "--verify"]) != 0
    assert "its card names 0000" in capsys.readouterr().err


def test_two_are_asked_the_same_and_shown_side_by_side(trained, here, capsys):
    base, tuned = trained
    (here / "p.txt").write_text("the small\n\n<script>alert(1)</script>\n")
    words = ["compare", base, tuned, "--prompts", "p.txt", "--prompt", "loss", "--max-tokens", 5]
    made = told([*words, "--html", "ab.html"], capsys)
    assert made["prompts"] == ["loss", "the small", "<script>alert(1)</script>"]
    for run in (base, tuned):
        loaded, alone = load_run(str(run)), compare.ask(
            str(run), ["the small"], compare.SamplingConfig(temperature=0.0), 5
        )  # fmt: skip
        assert loaded and made["answers"][str(run)][1] == alone[0]
    page = (here / "ab.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert main(["models", *map(str, words)]) == 0
    assert "[2] the small" in capsys.readouterr().out


def test_the_live_picture_was_drawn_while_it_trained(trained):
    base, _ = trained
    assert (base / "live.png").read_bytes().startswith(b"\x89PNG")
    assert (base / "live.log").read_text() == ""
    facts = json.loads((base / "live.json").read_text())
    assert facts["steps"] == STEPS and facts["params"] > 0
    assert not list(base.glob(".live.png*"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no command is given"),
        (["lst"], "did you mean `gchat models ls`"),
        (["show", "nothing"], "holds no model 'nothing'"),
        (["add", "nowhere"], "holds no run"),
        (["note", "x"], "neither a text nor --status"),
        (["compare", "x", "x", "--prompt", "y"], "fewer than two models"),
        (["show", "../models"], "holds no model"),
    ],
)
def test_mistakes_are_one_line(words, problem, here, capsys):
    assert main(["models", *words]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not Path("models").exists()

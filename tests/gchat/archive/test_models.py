"""`gchat models`: labels that say what is in a snapshot, and a live picture of the run it is of."""

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import runs
from exported import make_run, tokenizer
from gaia.checkpoint import Checkpointer
from gchat.__main__ import main
from gchat.archive import card, compare, snapshot
from gchat.config import CHECKPOINTS
from gchat.engine.requests import SamplingConfig
from gchat.run import judged
from gchat.run.checkpoints import read_run
from gchat.run.loading import load_run

JUDGEMENT = {"time": 1.0, "step": 11, "judge": "small", "answers": 50, "passed": 20, "raw": 0.4,
             "rate": 0.35, "low": 0.2, "high": 0.5, "groups": {}, "verdicts": "v"}  # fmt: skip
LOG = [{"step": 7, "time": 7.0, "train/loss": 5.0},
       {"step": 11, "time": 11.0, "train/loss": 4.0, "eval/val_bpb": 2.5},
       {"step": 13, "time": 13.0, "train/loss": 1.0, "eval/val_bpb": 0.5}]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of random parameters at steps 7 and 11, validated and judged at step 11 alone."""
    base = tmp_path_factory.mktemp("runs") / "tiny war"
    make_run(base, tokenizer())
    params = jax.tree.map(lambda a: a * 0.5, load_run(str(base)).params)
    checkpoints = Checkpointer(str(base / CHECKPOINTS))
    assert checkpoints.save(11, {"params": params}, {}) is None
    assert checkpoints.close() is None
    (base / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    judged.add(base, JUDGEMENT)
    return base


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


def test_a_snapshot_says_what_it_is_and_is_a_run(base, here, capsys):
    last = told(["add", base, "--note", "first"], capsys)
    early = told(["add", base, "--step", 7, "--name", "early", "--status", "broken"], capsys)
    assert last["facts"]["weights"] == plain_digest(base, "11") != early["facts"]["weights"]
    assert early["facts"]["weights"] == plain_digest(base, "7")
    assert last["metrics"]["val_bpb"] == 2.5 and last["metrics"]["judge"]["rate"] == 0.35
    # Step 7 was not validated nor judged: figures of other steps are not its own.
    assert early["metrics"] == {"train_loss": 5.0}
    params = sum(leaf.size for leaf in jax.tree.leaves(load_run(str(base)).params))
    assert last["facts"]["params"] == params and last["facts"]["step"] == 11
    assert last["name"] == "tiny-war-119K-base-step11-bpb2.500"
    kept = (here / "models" / last["name"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [7, 11]
    # It is a run, wherever the first one went.
    shutil.move(base, base.with_name("away"))
    try:
        loaded = load_run(str(here / "models" / last["name"]))
        assert loaded.step == 11 and loaded.config.model.depth == 2
        assert told(["show", last["name"], "--verify"], capsys)["verified"] is True
    finally:
        shutil.move(base.with_name("away"), base)
    assert sorted(p.name for p in (here / "models").iterdir()) == ["early", last["name"]]


def test_what_people_say_and_what_is_refused(base, here, capsys):
    name = told(["add", base, "--note", "first"], capsys)["name"]
    weights = card.read(here / "models" / name).facts["weights"]
    assert main(["models", "add", str(base)]) == 2
    assert f"already, as {name!r}" in capsys.readouterr().err
    child = replace(card.read(here / "models" / name), name="child", lineage=[{"model": name}])
    (here / "models/child").mkdir()
    card.write(here / "models/child", child)
    assert main(["models", "rm", name]) == 2
    assert "child come from" in capsys.readouterr().err
    assert main(["models", "rm", "child"]) == 0
    noted = told(["note", name, "knows dates", "--status", "good"], capsys)
    assert [n["text"] for n in noted["notes"]] == ["first", "knows dates"]
    assert [c["name"] for c in told(["ls", "--status", "good"], capsys)["models"]] == [name]
    path = here / "models" / name / card.FILE
    path.write_text(path.read_text().replace(weights, "0" * 64))  # or the parameters are damaged
    assert main(["models", "show", name, "--verify"]) != 0
    assert "its card names 0000" in capsys.readouterr().err


def test_the_line_of_a_run_goes_back_to_the_first(base, here, capsys):
    """Each stage names its base and the step, as stages keep it."""
    known = told(["add", base], capsys)["name"]
    for name, before, step in (("mid", base, 11), ("sft", here / "mid", 4)):
        shutil.copytree(base, here / name)
        path = here / name / "config.yaml"
        tree = yaml.safe_load(path.read_text())
        tree["training"]["init_from"] = str(before)
        tree["stage"] |= {"name": name, "base_step": step}
        path.write_text(yaml.safe_dump(tree))
    config = read_run(str(here / "sft"))
    assert snapshot._lineage(here / "models", here / "sft", config) == [
        {"run": str(base), "step": 11, "stage": "base", "model": known},
        {"run": str(here / "mid"), "step": 4, "stage": "mid"},
    ]
    # Or it begins with the archived model, which is then not taken away.
    path = here / "mid" / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["training"]["init_from"] = str(here / "models" / known)
    path.write_text(yaml.safe_dump(tree))
    with (here / "mid" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "tra')  # a kill tore it
    told(["add", here / "mid", "--step", 7, "--name", "child"], capsys)
    assert main(["models", "rm", known]) == 2 and "child" in capsys.readouterr().err


@pytest.mark.slow
def test_two_are_asked_the_same_and_shown_side_by_side(base, here, capsys):
    tuned = told(["add", base, "--step", 7, "--name", "tuned"], capsys)["name"]
    (here / "p.txt").write_text("the small\n\n<script>alert(1)</script>\n")
    words = ["compare", base, tuned, "--prompts", "p.txt", "--prompt", "loss", "--max-tokens", 5]
    made = told([*words, "--html", "ab.html"], capsys)
    assert made["prompts"] == ["loss", "the small", "<script>alert(1)</script>"]
    alone = compare.ask(str(here / "models/tuned"), ["the small"], SamplingConfig(temperature=0), 5)
    assert made["answers"]["tuned"][1] == alone[0] != made["answers"][str(base)][1]
    page = (here / "ab.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert main(["models", *map(str, words)]) == 0
    assert "[2] the small" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trained_run_and_its_live_picture(data_dir, here, capsys):
    first, second = here / "first", here / "second"
    words = runs.arguments(data_dir, first, "--run.picture-seconds", 0.1, steps=40)
    assert main(["train", *words]) == 0
    words = runs.arguments(data_dir, second, "--init-from", first, steps=6)
    assert main(["train", *words]) == 0
    made = told(["add", first], capsys)
    assert made["facts"]["tokens"] == 40 * 4 * 32 and made["metrics"]["val_bpb"] > 0
    # `train --init-from` keeps no step of what it began with.
    assert told(["add", second], capsys)["lineage"] == [
        {"run": str(first), "step": None, "stage": "base"}
    ]
    until = time.monotonic() + 240  # the last one is drawn after the trainer's end
    while not (first / "live.png").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (first / "live.png").read_bytes().startswith(b"\x89PNG")
    assert (first / "live.log").read_text() == ""
    facts = json.loads((first / "live.json").read_text())
    assert facts["steps"] == 40 and facts["params"] == made["facts"]["params"]


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


def test_a_prompt_goes_on_behind_u_2028(tmp_path):
    asked = json.dumps({"prompt": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_text(f"{asked}\n", encoding="utf-8")
    (tmp_path / "p.txt").write_text("one\u2028two\n\nthree\n", encoding="utf-8")
    assert compare.prompts([], tmp_path / "p.jsonl") == ["one\u2028two"]
    assert compare.prompts([], tmp_path / "p.txt") == ["one\u2028two", "three"]

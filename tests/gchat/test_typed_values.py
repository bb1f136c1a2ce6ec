"""A value that somebody typed is used as it is, or refused: amounts, sizes, sampling, text."""

import dataclasses
import os
import subprocess
import sys

import pytest

import runs
from gaia.config import load_yaml, parse, to_yaml
from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.ask.sample import Sample
from gchat.config import TrainConfig, derive, load
from gchat.run_config import EvalConfig


def steps(*args):
    config = derive(load(list(args)), vocab_size=4096, padded_vocab_size=4096)[0]
    return config.training.amounts.steps


def test_a_preset_s_length_wins_over_the_one_of_its_base(tmp_path):
    assert steps("cpu") == 560
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: cpu\ntraining:\n  tokens_per_param: 20\n")
    assert steps(str(mine)) == 21760
    mine.write_text("base: cpu\ntraining:\n  steps: 17\n")
    assert steps(str(mine)) == 17
    assert steps(str(mine), "--training.tokens=409600") == 100
    mine.write_text("base: cpu\ntraining:\n  seed: 3\n")
    assert steps(str(mine)) == 560


def test_two_lengths_that_may_contradict_are_refused(data_dir, tmp_path, capsys):
    args = runs.arguments(data_dir, tmp_path / "run", "--training.tokens", "4096")
    assert main(["train", *args]) == 2
    said = capsys.readouterr().err
    assert "training.steps and training.tokens are both given; give one" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_named_preset_with_a_size_stops_the_plan_and_says_so(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("base: cpu\nmodel:\n  depth: 3\n")
    assert main(["speedrun", str(own), "--dry-run"]) == 0
    assert f"the depth is that of {own}" in capsys.readouterr().out
    free = tmp_path / "free.yaml"
    free.write_text("training:\n  batch_size: 8\nmodel:\n  seq_len: 512\n  head_dim: 64\n")
    assert main(["speedrun", str(free), "--dry-run", "--warmup", "5"]) == 0
    said = capsys.readouterr().out
    assert "the depth is that of" not in said and "depth 24" not in said


@pytest.mark.parametrize("args", [["--seed", "9" * 20], ["--seed", "-1"], ["--temperature", "nan"]])
def test_sampling_is_refused_before_anything_is_read(args, capsys):
    assert main(["sample", "--run", "/nowhere", "--prompt", "x", *args]) == 2
    said = capsys.readouterr().err
    assert args[0][2:] in said and said.count("\n") == 1


TEXTS = [
    "", "True", "false", "on", "None", "-h", "--x", "--run", "-5 + 3 =", "- a list item",
    "--- title = x", "a=b", "a\nb", "x --eval.tokens=5", "日本",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_text_typed_and_in_a_preset(text, tmp_path):
    typed = ["--prompt", text] if text != "--run" else [f"--prompt={text}"]
    for args in (typed, [f"--prompt={text}"]):
        assert parse(Sample, ["--run", "r", *args, "--json"]) == Sample("r", text, json=True)
    for evals in (EvalConfig(prompts=("a", text)), EvalConfig(files={text: text})):
        config = dataclasses.replace(TrainConfig(), eval=evals)
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        assert parse(TrainConfig, [], preset=load_yaml(path)) == config


def test_a_misspelt_option_is_no_prompt():
    with pytest.raises(ConfigError, match=r"--eval\.token"):
        load(["--eval.prompts", "a", "--eval.token", "7"])


def test_presets_are_utf_8_in_any_locale(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("eval:\n  prompts: [Õun]\n", encoding="utf-8")
    code = (
        "import sys, pathlib; from gaia.config import load_yaml; "
        "print(ascii(load_yaml(pathlib.Path(sys.argv[1]))))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "{'eval': {'prompts': ['\\xd5un']}}\n", done.stderr

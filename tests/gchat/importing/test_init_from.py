"""A run that begins with an imported model's parameters."""

import re

import jax
import numpy as np
import pytest

import foreign
import runs
from gaia import parallel
from gaia.data.shards import write_shards
from gaia.errors import ConfigError
from gchat import tokenizer as tokenizers
from gchat import train
from gchat.__main__ import main
from gchat.config import derive, load
from gchat.run.loading import load_run
from gchat.tokenizer import Tokenizer

TEXT = "the one and the other are in the sea of the wind, and the hen is on the way to the end"
SMALL = ["--model.seq-len", "32", "--batch-size", "4", "--eval.tokens", "300", "--warmup", "1"]


def make_data(folder, tokenizer):
    """Shards of documents of one kind under a tokenizer."""
    words, rng = TEXT.split(), np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=60)) for _ in range(40)]
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(text)]) for text in texts]
    write_shards(folder, ids[4:], ids[:4], tokenizer.info, shard_tokens=2000)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    folder = foreign.write_folder(place / "hf", foreign.CASES["qwen3_tied"])
    assert main(["import", "hf", str(folder), "--out", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture(scope="module")
def data(base, tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), Tokenizer.load(base))


def test_the_model_is_that_of_the_run(base, data):
    model = load_run(str(base)).config.model
    for typed in (["--init-from", str(base)], [f"--training.init_from={base}"]):
        assert load(typed).model == model
        assert load(["cpu", *typed]).model == model  # a preset's other groups count
        changed = load([*typed, "--model.seq-len", "32", "--model.dropout", "0.1"]).model
        assert (changed.seq_len, changed.dropout, changed.qk_norm) == (32, 0.1, True)
    with pytest.raises(ConfigError, match="init_from is 'nowhere', which holds no run"):
        load(["--init-from", "nowhere"])


def test_the_first_state_holds_its_parameters_and_a_new_optimizer(base):
    config = load(["--init-from", str(base), *SMALL, "--max-steps", "2"])
    config, _ = derive(config, vocab_size=foreign.ROWS, padded_vocab_size=384)
    state = train._first_state(config, parallel.make_mesh(config.mesh))
    jax.tree.map(np.testing.assert_array_equal, state.params, load_run(str(base)).params)
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1)


def test_other_data_and_other_sizes_are_refused(base, data, tmp_path, capsys):
    other = tokenizers.train_bpe([TEXT] * 5, 300)
    foreign_data = make_data(tmp_path / "other", other)
    command = ["train", "--init-from", str(base), *SMALL, "--max-steps", "2"]
    new = ["--run-dir", str(tmp_path / "new")]
    assert main([*command, *new, "--data-dir", str(foreign_data)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "whose tokenizer (imported" in line and f"--tokenizer {base}/tokenizer.json" in line
    assert main([*command, *new, "--data-dir", str(data), "--model.hidden", "64"]) == 2
    assert "does not fit this run (params.blocks.mlp" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_import_cannot_be_resumed(base, data, capsys):
    before = {p: p.stat().st_mtime_ns for p in base.rglob("*")}
    resume = ["train", "--resume", "--run-dir", str(base), "--data-dir", str(data)]
    assert main([*resume, "--max-steps", "2", "--batch-size", "4"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "holds an imported model" in line and f"--init-from {base}" in line
    assert {p: p.stat().st_mtime_ns for p in base.rglob("*")} == before


@pytest.mark.slow
def test_training_goes_on_and_resumes_bit_for_bit(base, data, tmp_path):
    def start(place):
        own = ["--init-from", base, "--data-dir", data, "--run-dir", place, "--max-steps", "40"]
        often = ["--checkpoint.every-steps", "10", "--checkpoint.every-minutes", "0"]
        quiet = ["--eval.prompts", "the", "--eval.sample-tokens", "2", "--log-interval", "1"]
        arguments = [*own, *SMALL, *often, *quiet, "--lr", "0.003", "--optim.name", "adamw"]
        return runs.Process.train([str(x) for x in arguments], None)

    whole = start(tmp_path / "whole")
    assert whole.end() == 0, whole.text
    assert f"begins with the newest parameters of {base}" in whole.text
    losses = runs.losses(tmp_path / "whole")
    assert losses[40] < 0.7 * losses[1]
    stopped = start(tmp_path / "stopped")
    assert stopped.step_reached(25), stopped.text
    stopped.signal(9)
    stopped.end()
    base.rename(tmp_path / "moved")  # a run that has checkpoints needs its base no longer
    try:
        again = runs.Process.train(["--resume", "--run-dir", str(tmp_path / "stopped")], None)
        assert again.end() == 0, again.text
    finally:
        (tmp_path / "moved").rename(base)
    assert re.search("resumed from step [123]0 ", again.text), again.text
    assert runs.losses(tmp_path / "stopped") == losses
    ours, theirs = (runs.arrays(tmp_path / name, 40) for name in ("stopped", "whole"))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    for place in (tmp_path / "whole", tmp_path / "stopped"):
        assert main(["sample", "--run", str(place), "--prompt", "the", "--max-tokens", "3"]) == 0

"""The model and what it is compared with are measured on the same text, and as much of it."""

import json

import numpy as np
import pytest

import runs
from gaia.data.loader import iter_documents
from gaia.data.shards import write_shards
from gchat.__main__ import main
from gchat.evals.bpb import take_tokens
from gchat.evals.ngram import ngram_baselines
from gchat.tokenizer import Tokenizer


@pytest.mark.parametrize(("limit", "lengths"), [(500, [500]), (1, []), (30_005, [30_000, 5])])
def test_a_limit_of_tokens_cuts_the_document_that_exceeds_it(limit, lengths):
    documents = [np.arange(30_000), np.arange(40), np.arange(7)]
    assert [len(d) for d in take_tokens(iter(documents), limit)] == lengths
    assert sum(len(d) for d in take_tokens(iter(documents), 10**9)) == 30_047


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("like") / "run"
    args = runs.arguments(data_dir, folder, "--eval.tokens", "120", steps=20)
    args.remove("--eval.prompts")
    assert main(["train", *args]) == 0
    return folder


def test_baselines_are_scored_on_the_text_that_the_model_was(run, data_dir):
    summary = json.loads((run / "summary.json").read_text())
    documents = take_tokens(iter_documents(data_dir, "val"), 120)
    options = {"seq_len": 32, "batch_size": 4, "seed": 1337}
    same = ngram_baselines(data_dir, 20 * 4 * 32, documents=documents, **options)
    whole = ngram_baselines(data_dir, 20 * 4 * 32, **options)
    assert summary["bigram_bpb"] == round(same.bigram_bpb, 4) != round(whole.bigram_bpb, 4)


def test_prompts_are_openings_of_the_validation_documents(run, data_dir):
    tokenizer = Tokenizer.load(str(data_dir))
    first = next(iter(iter_documents(data_dir, "val")))
    opening = tokenizer.decode(first[1:9].tolist())
    samples = (run / "samples.txt").read_text().splitlines()
    assert samples[1].startswith(f"{opening} →")


def test_a_text_called_val_is_refused(data_dir, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("some text")
    args = runs.arguments(data_dir, tmp_path / "run", "--eval.files", "val", text)
    assert main(["train", *args]) == 2
    assert "eval.files names a text 'val'" in capsys.readouterr().err


def test_epochs_are_said_and_many_of_them_warned_of(tmp_path, data_dir, capsys):
    tokenizer = Tokenizer.load(str(data_dir))
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(runs.TEXT)]) for _ in range(4)]
    write_shards(tmp_path / "data", ids, ids[:1], tokenizer.info)
    tokenizer.save(str(tmp_path / "data/tokenizer.json"))
    args = runs.arguments(tmp_path / "data", tmp_path / "run", steps=20)
    assert main(["train", *args]) == 0
    said = capsys.readouterr().out
    epochs = 20 * 4 * 32 / sum(map(len, ids))
    assert epochs > 4 and f"epochs: {epochs:.2f} of " in said
    assert "warning: above 4 epochs" in said
    assert json.loads((tmp_path / "run/summary.json").read_text())["epochs"] == round(epochs, 4)
    assert (
        f"| epochs | {epochs:.2f} of the training tokens"
        in (tmp_path / "run/report.md").read_text()
    )

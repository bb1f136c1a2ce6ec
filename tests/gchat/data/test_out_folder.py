"""The folder `--out` of `prepare` and `curate`: the user's files stay, one process writes."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from gaia.data.shards import verify
from gaia.errors import DataError, GaiaError
from gaia.writer_lock import FolderInUse
from gchat import tokenizer as tokenizers
from gchat.__main__ import main
from gchat.data import work
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.prepare import prepare
from gchat.tokenizer import Tokenizer

WORDS = ["the", "loss", "falls", "slowly", "when", "data", "and", "model", "agree"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.jsonl"
    rng = np.random.default_rng(0)
    texts = [f"document {i} " + " ".join(rng.choice(WORDS, 20)) for i in range(40)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return file


def run(corpus, out, **options):
    options = {"vocab_size": 300, "val_fraction": 0.1, "workers": 1} | options
    return prepare(source="text", input=str(corpus), out=out, **options)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def mine(tmp_path):
    """An output folder that holds a trained tokenizer and other files of the user."""
    out = tmp_path / "out"
    tokenizers.train_bpe(["a text of mine, " * 9] * 9, 290).save(out)
    for name in ("report.pdf", "part-1.jsonl.zst", "notes-tokens-00000.arrayrecord.md"):
        (out / name).write_text("the user's")
    return out


@pytest.mark.parametrize("how", ["prepare", "curate"])
def test_a_failure_removes_none_of_the_users_files(tmp_path, mine, how):
    before = content(mine)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{no json")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        if how == "prepare":
            prepare(source="text", input=str(bad), out=mine, tokenizer=str(mine), workers=1)
        else:
            curate(Options(out=mine, input=str(bad), workers=1), progress=False)
    assert content(mine) == before


@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe"])
def test_a_tokenizer_that_lies_there_is_not_taken_for_another(corpus, mine, tokenizer):
    before = content(mine)
    message = rf"holds another tokenizer than --tokenizer {tokenizer} \(bpe, 2\d\d ids\); use it"
    with pytest.raises(DataError, match=message):
        run(corpus, mine, tokenizer=tokenizer)
    assert content(mine) == before


def test_a_tokenizer_that_lies_there_is_used_when_it_is_named(corpus, mine):
    before = content(mine)
    manifest = run(corpus, mine, tokenizer=str(mine))
    assert manifest.tokenizer == Tokenizer.load(mine).info
    assert {name: data for name, data in content(mine).items() if name in before} == before
    assert verify(mine) == manifest


def test_the_tokenizer_is_read_before_its_data_set_is_replaced(corpus, tmp_path):
    first = run(corpus, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("the user's")
    second = run(corpus, tmp_path / "out", tokenizer=str(tmp_path / "out"), overwrite=True)
    assert second.tokenizer == first.tokenizer
    assert Tokenizer.load(tmp_path / "out").info == first.tokenizer
    assert (tmp_path / "out" / "mine.txt").read_text() == "the user's"


def test_shards_of_somebody_else_are_refused(corpus, tmp_path):
    (tmp_path / "tokens-00000.arrayrecord").write_text("other data")
    with pytest.raises(DataError, match=r"holds tokens-00000\.arrayrecord, which a data set would"):
        run(corpus, tmp_path)
    assert content(tmp_path) == {"tokens-00000.arrayrecord": b"other data"}


@pytest.mark.parametrize("how", ["prepare", "curate"])
def test_a_second_writer_is_refused_and_the_first_untouched(corpus, tmp_path, monkeypatch, how):
    """The second begins when the first is in the middle of its work."""
    out, middle, go = tmp_path / "out", threading.Event(), threading.Event()
    real = work.Encode.__call__

    def slow(self, task):
        middle.set()
        assert go.wait(20)
        return real(self, task)

    def start(out):
        if how == "prepare":
            run(corpus, out)
        else:
            curate(Options(out=out, input=str(corpus), workers=1, rules=()), progress=False)

    if how == "prepare":
        monkeypatch.setattr(work.Encode, "__call__", slow)
    else:
        from gchat.data.curation import stages

        real = stages.Filter.__call__
        monkeypatch.setattr(stages.Filter, "__call__", slow)
    raised = []

    def first():
        try:
            start(out)
        except GaiaError as error:
            raised.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert middle.wait(20)
    with pytest.raises(FolderInUse, match=f"in {out} is being written by process"):
        start(out)
    go.set()
    thread.join()
    assert not raised
    start(tmp_path / "alone")
    assert content(out) == content(tmp_path / "alone")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokenizer", "train", "--input", "{text}", "--out", "{data}"], "is a data set, whose"),
        (["tokenizer", "train", "--input", "{text}", "--out", "gs://b/tok"], "is a bucket"),
        (["tokenizer", "eval", "--text", "a={text}", "--out", "gs://b/x.md"], "is a bucket"),
        (["data", "verify", "{data}", "--threads", "0"], "threads is 0; use 1 or more"),
        (["data", "lengths", "{data}", "--threads", "0"], "threads is 0; use 1 or more"),
    ],
)
def test_what_would_spoil_a_data_set_is_one_line(
    data_dir, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text, " * 99)
    places = {"text": "text.txt", "data": str(data_dir)}
    before = content(Path(data_dir))
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert content(Path(data_dir)) == before and not (tmp_path / "gs:").exists()

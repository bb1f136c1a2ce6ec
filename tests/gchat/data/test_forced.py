"""`forced` reaches the tokenizer that a preparation, or a run on text, trains."""

import pytest

import runs
from gaia.errors import ConfigError, DataError
from gchat.data.on_the_fly import open_text
from gchat.data.prepare import prepare
from gchat.tokenizer import Tokenizer

FORCED = ("1939-1945", "months", "Wehrmacht", "Pearl Harbor")
PIECES = ("1944", "1939", " May", "Wehrmacht", " Wehrmacht", " Pearl Harbor")


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"{runs.TEXT} {i} in 1944 at Pearl Harbor. " * 3)
    return folder


def test_a_preparation_trains_them(text, tmp_path):
    options = {"source": "text", "input": str(text), "tokenizer": "bpe", "vocab_size": 700,
               "workers": 1, "progress": False}  # fmt: skip
    prepare(out=tmp_path / "data", forced=FORCED, **options)
    tokenizer = Tokenizer.load(tmp_path / "data")
    assert [len(tokenizer.encode(piece)) for piece in PIECES] == [1] * len(PIECES)
    with pytest.raises(DataError, match="forced"):
        prepare(out=tmp_path / "data", forced=FORCED[:1], **options)
    with pytest.raises(ConfigError, match="forced has no effect with tokenizer = 'gpt2'"):
        prepare(out=tmp_path / "other", forced=FORCED, **options | {"tokenizer": "gpt2"})


def test_a_run_on_text_trains_them_and_keeps_each_vocabulary_apart(text):
    options = {"column": "text", "tokenizer": "bpe", "vocab_size": 700}
    plain, given = (open_text(str(text), forced=f, **options) for f in ((), FORCED))
    assert plain.folder != given.folder
    assert [len(given.tokenizer.encode(piece)) for piece in PIECES] == [1] * len(PIECES)
    assert len(plain.tokenizer.encode("Wehrmacht")) > 1

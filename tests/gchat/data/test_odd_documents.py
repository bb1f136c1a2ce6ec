"""Documents that no program expects: none of them ends the work with a traceback."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaia.data.loader import iter_documents
from gaia.errors import ConfigError, DataError
from gchat import tokenizer as tokenizers
from gchat.data.curation import contamination
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.prepare import prepare
from gchat.data.sources import mediawiki, text
from gchat.data.sources.files import listed
from gchat.data.sources.unit import Tally
from gchat.tokenizer import Tokenizer

GOOD = [json.dumps({"text": f"document {i} with some words in it"}) for i in range(30)]
DEEP = '{"text": "x", "meta": ' + "[" * 100_000 + "]" * 100_000 + "}"
SURROGATE = '{"text": "with a broken title", "title": "broken \\ud83d", "url": "http://a/\\udc00"}'


def write(path, *lines):
    path.write_text("\n".join(lines))
    return path


def read(path, max_bad=0, **options):
    tally = Tally(max_bad=max_bad)
    corpus = text.corpus(str(path), **options)
    return [row for unit in corpus.units for row in unit.read(tally)], tally


def both(tmp_path, **options):
    """Runs prepare and curate on tmp_path/in; the manifest and the report."""
    given = {"input": str(tmp_path / "in"), "workers": 1} | options
    manifest = prepare(
        source="text", out=tmp_path / "data", vocab_size=280, val_fraction=0.2, **given
    )
    return manifest, curate(Options(out=tmp_path / "clean", rules=(), **given), progress=False)


def test_a_run_of_a_million_spaces_is_encoded():
    """tiktoken: RuntimeError(StackOverflow), a panic, from 999,999 white space characters on."""
    made = tokenizers.train_bpe(["some words\n\n  and more "] * 20, 280)
    for odd in (
        " " * 1_000_001,
        "word" + "\t\n " * 500_000 + "end",
        "a" * 300_000 + "\u3000" * 10**6,
    ):
        ids = made.encode(odd)
        assert made.decode(ids) == odd and made.encode_array(odd).tolist() == ids
    ordinary = "one two  three\n" * 40_000  # long, and no such run: as in one piece
    assert made.encode(ordinary) == made.codec._encoding.encode_ordinary(ordinary)


def test_bad_lines_are_counted_with_file_and_line_and_stop_at_the_limit(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(text, "UNIT_BYTES", 1)  # each file is counted alone, then all together
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", *GOOD, DEEP, "{torn", SURROGATE)
    write(tmp_path / "in" / "b.jsonl", '{"text": 5}', *GOOD[:2])
    for how in (both, lambda path: read(path / "in" / "a.jsonl")):
        with pytest.raises(DataError, match=r"a\.jsonl line 31 is not JSON \(nested too deeply\)"):
            how(tmp_path)
    with pytest.raises(DataError, match=r"3 documents cannot be read, the first is .*line 31") as e:
        both(tmp_path, max_bad=2)
    assert "--max-bad" in e.value.remedy
    capsys.readouterr()
    manifest, report = both(tmp_path, max_bad=3)
    assert sum(manifest.documents.values()) == report["read"]["documents"] == 33
    said = capsys.readouterr().err
    assert "3 documents that cannot be read were left out, the first is" in said
    assert "a.jsonl line 31" in (tmp_path / "clean" / "report.md").read_text()
    with pytest.raises(ConfigError, match="max_bad = -1"):
        both(tmp_path, max_bad=-1)


def test_surrogates_in_any_field_and_nulls(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", *GOOD, SURROGATE, '{"text": null}')
    table = pa.table({"text": ["in parquet", None], "title": ["t", "u"]})
    pq.write_table(table, tmp_path / "in" / "b.parquet")
    manifest, report = both(tmp_path)
    assert sum(manifest.documents.values()) == report["read"]["documents"] == 32
    assert "2 documents without a text (null) were left out" in capsys.readouterr().err
    rows, tally = read(tmp_path / "in")
    assert tally.nulls == 2
    odd = next(row for row in rows if "broken" in row.text)
    assert (odd.meta["title"], odd.meta["url"]) == ("broken ?", "http://a/?")


def test_categorical_and_view_columns_are_text(tmp_path):
    words = pa.array(["one", "two", "one"])
    table = pa.table({
        "dictionary": words.dictionary_encode(), "large": words.cast(pa.large_string()),
        "view": words.cast(pa.string_view()), "numbers": pa.array([1, 2, 1]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    for column in ("dictionary", "large", "view"):
        rows, _ = read(tmp_path / "a.parquet", text_column=column)
        assert [row.text for row in rows] == ["one", "two", "one"]
    with pytest.raises(DataError, match="column 'numbers' is int64, not text"):
        read(tmp_path / "a.parquet", text_column="numbers")


def test_the_first_file_that_is_not_utf8_is_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", *GOOD)
    (tmp_path / "in" / "b.txt").write_bytes(b"caf\xe9 and some more words")
    both(tmp_path)
    file = tmp_path / "in" / "b.txt"
    said = capsys.readouterr().err
    assert f"1 invalid UTF-8 sequences became U+FFFD, the first in {file}" in said


def test_a_file_name_that_is_not_utf8(tmp_path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"caf\xe9.jsonl")
    try:
        write(tmp_path / "in" / name, *GOOD)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    manifest, report = both(tmp_path)
    assert manifest.sources == (f"{tmp_path / 'in'}/caf\ufffd.jsonl",)
    assert "caf\ufffd.jsonl" in (tmp_path / "clean" / "report.md").read_text(encoding="utf-8")
    assert report["read"]["documents"] == 30


def test_lists_with_a_bom_or_in_latin_1(tmp_path):
    (tmp_path / "bom.txt").write_bytes("\ufeffPearl Harbor\r\n\r\nMünchen\n".encode())
    assert listed("forced_terms", tmp_path / "bom.txt") == ["Pearl Harbor", "München"]
    (tmp_path / "latin1.txt").write_bytes("one\nMünchen\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"titles = '.*latin1\.txt' line 2 is not UTF-8"):
        mediawiki.listed("titles", str(tmp_path / "latin1.txt"))
    with pytest.raises(ConfigError, match=r"forced_terms: .*No such file"):
        listed("forced_terms", tmp_path / "no.txt")


def test_a_damaged_evaluation_set_is_named(tmp_path):
    whole = gzip.compress("\n".join(GOOD).encode() * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:40] + bytes(20) + whole[60:])
    with pytest.raises(DataError, match=r"decontaminate: .*a\.jsonl\.gz cannot be read"):
        contamination.load([str(tmp_path / "a.jsonl.gz")])


def test_leading_white_space_of_documents_is_kept(tmp_path):
    """The indentation of code is part of it; blank lines around a document are not."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", json.dumps({"text": "    indented = 1\n"}), *GOOD)
    (tmp_path / "in" / "b.txt").write_text("\n \n\t  tabbed text\n\n")
    prepare(source="text", input=str(tmp_path / "in"), out=tmp_path / "data", vocab_size=280,
            val_fraction=0.2, workers=1)  # fmt: skip
    made = Tokenizer.load(tmp_path / "data")
    stored = {
        made.decode(d[1:]) for s in ("train", "val") for d in iter_documents(tmp_path / "data", s)
    }
    assert {"    indented = 1", "\t  tabbed text"} <= stored


@pytest.mark.slow
def test_the_command_has_no_traceback_for_a_million_spaces(tmp_path, user_environment):
    write(tmp_path / "a.jsonl", *GOOD, json.dumps({"text": "x" + " " * 1_000_001 + "y"}))
    done = subprocess.run(
        [sys.executable, "-m", "gchat", "data", "prepare", "--input", str(tmp_path / "a.jsonl"),
         "--out", str(tmp_path / "out"), "--vocab-size", "280", "--val-fraction", "0.2"],
        env=user_environment, capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)

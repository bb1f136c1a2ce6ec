"""The files that an input names: each real file once, and what is left out is said."""

import bz2
import fnmatch
import gzip
import json
import lzma
import re

import pytest

from gaia.errors import ConfigError, DataError
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.prepare import prepare
from gchat.data.sources import text
from gchat.data.sources.unit import Tally

LINES = [json.dumps({"text": f"line {i} with some words"}) for i in range(30)]


def write(path, first=0, count=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(LINES[first : first + count]))


def read(given, **options):
    """(numbers of the lines read, what is said to be left out)."""
    corpus = text.corpus(str(given), **options)
    documents = [d for unit in corpus.units for d in unit.documents(Tally())]
    return [int(d.split()[1]) for d in documents], corpus.left_out


@pytest.mark.parametrize("given", ["loop", "loop/**/*.jsonl", "loop/**/a.*"])
def test_a_loop_of_links_gives_each_file_once(tmp_path, given):
    write(tmp_path / "loop" / "real" / "a.jsonl")
    (tmp_path / "loop" / "real" / "loop").symlink_to("..")
    assert read(tmp_path / given)[0] == [0, 1, 2]


@pytest.mark.parametrize("end", [r"\Z", r"\z"])
def test_a_glob_is_read_alike_by_every_python(tmp_path, monkeypatch, end):
    """From 3.14 on, what fnmatch gives ends with another mark for the end of a text."""
    translate = fnmatch.translate

    def other(pattern):
        return re.sub(r"\\[zZ]\Z", lambda _: end, translate(pattern))

    monkeypatch.setattr("gchat.data.sources.walk.fnmatch.translate", other)
    write(tmp_path / "in" / "deep" / "er" / "a.jsonl")
    write(tmp_path / "in" / "b.jsonl", 9)
    assert other("a*").endswith(end)
    assert read(tmp_path / "in" / "**" / "de*" / "**" / "*.jsonl")[0] == [0, 1, 2]


def test_linked_folders_and_files_are_followed_once(tmp_path):
    write(tmp_path / "elsewhere" / "b.jsonl", 3)
    write(tmp_path / "in" / "own.jsonl")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "same.jsonl").symlink_to("own.jsonl")
    (tmp_path / "in" / "broken.jsonl").symlink_to("nowhere")
    assert sorted(read(tmp_path / "in")[0]) == [0, 1, 2, 3, 4, 5]


def test_hidden_files_and_other_endings_are_left_out_and_said(tmp_path):
    write(tmp_path / "a.jsonl")
    for name in ("._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".git/x.md"):
        write(tmp_path / name)
    for name in ("b.csv", "c.csv", "d.json.gz"):
        (tmp_path / name).write_bytes(b"x")
    numbers, left_out = read(tmp_path)
    assert numbers == [0, 1, 2]
    assert left_out == "2 .csv, 1 .json.gz, 3 hidden"


def test_every_known_compression_is_read(tmp_path):
    raw = "\n".join(LINES[:2]).encode()
    for i, (ending, packed) in enumerate(
        {"gz": gzip.compress(raw), "bz2": bz2.compress(raw), "xz": lzma.compress(raw)}.items()
    ):
        file = tmp_path / str(i) / f"a.jsonl.{ending}"
        file.parent.mkdir()
        file.write_bytes(packed)
        assert read(file)[0] == [0, 1]
        file.write_bytes(packed[:-9])
        with pytest.raises(DataError, match="is truncated or damaged"):
            read(file)


def test_a_name_with_brackets_is_a_file_where_there_is_one(tmp_path):
    write(tmp_path / "web [2020].jsonl")
    write(tmp_path / "web 2.jsonl", 5)
    assert read(tmp_path / "web [2020].jsonl")[0] == [0, 1, 2]
    assert read(tmp_path / "web [2].jsonl")[0] == [5, 6, 7]


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl")
    real = open

    def refused(file, *args, **options):  # root may read everything: what open(2) says to others
        if str(file).endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **options)

    corpus = text.corpus(str(tmp_path))
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read \(Permission denied\)"):
        list(corpus.units[0].documents(Tally()))


# ── What this program makes itself ────────────────────────────────────────────────────────────────


def test_of_a_curation_only_the_parts_are_read(tmp_path):
    """Its report quotes what was removed: questions of evaluation sets came back that way."""
    write(tmp_path / "in" / "a.jsonl", count=20)
    secret = "one two three four five six seven eight nine ten eleven twelve thirteen secret"
    (tmp_path / "in" / "b.txt").write_text(secret)
    (tmp_path / "eval.txt").write_text(secret)
    options = {"rules": (), "workers": 1, "decontaminate": (str(tmp_path / "eval.txt"),)}
    curate(Options(out=tmp_path / "clean", input=str(tmp_path / "in"), **options), progress=False)
    assert "secret" in (tmp_path / "clean" / "report.md").read_text()
    numbers, left_out = read(tmp_path / "clean")
    assert sorted(numbers) == list(range(20))
    assert left_out == "3 of a curation"


def test_a_data_set_is_no_text(tmp_path):
    write(tmp_path / "in" / "a.jsonl", count=20)
    prepare(source="text", input=str(tmp_path / "in"), out=tmp_path / "data", vocab_size=280,
            val_fraction=0.2, workers=1)  # fmt: skip
    write(tmp_path / "data" / "notes.jsonl")
    with pytest.raises(DataError, match=r"is a folder without \.txt"):
        read(tmp_path / "data")


def test_results_inside_the_input_are_not_read_again(tmp_path):
    write(tmp_path / "a.jsonl", count=20)
    options = {"input": str(tmp_path), "rules": (), "workers": 1}
    first = curate(Options(out=tmp_path / "clean", **options), progress=False)
    assert curate(Options(out=tmp_path / "clean", **options), progress=False) == first
    # Another one sees the first as a curation: its parts, twice the same text.
    second = curate(Options(out=tmp_path / "other", **options), progress=False)
    assert second["read"]["documents"] == 40
    with pytest.raises(ConfigError, match="lies in the folder that is written"):
        curate(Options(out=tmp_path, **options), progress=False)
    assert not (tmp_path / ".curate").exists()

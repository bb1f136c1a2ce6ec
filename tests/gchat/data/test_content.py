"""Inputs are known by their content: a copy is the same, whatever its times and size."""

import os
import shutil
import time

import pytest

from gaia.errors import DataError
from gchat.data import on_the_fly
from gchat.data.chat_units import corpus as conversations
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.ending import previous_parameters
from gchat.data.prepare import WORK, prepare
from gchat.data.sources import content, text
from gchat.posttrain.data import Entry, Source

OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))


@pytest.fixture
def large(monkeypatch):
    """All inputs count as large."""
    monkeypatch.setattr(content, "_LARGE_BYTES", 10)
    # The change time of a file just made cannot be set back.
    monkeypatch.setattr(content, "_SETTLED_NS", -1)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"the story of {name}, which is long\n\n" * 400)
        os.utime(folder / f"{name}.txt", (OLD, OLD))
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were hashed."""
    names, real = [], content._sha256
    monkeypatch.setattr(
        content, "_sha256", lambda path, *rest: names.append(path.name) or real(path, *rest)
    )
    return names


def copied(folder, to):
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
    return to


def open_text(place, begun=None):
    return on_the_fly.open_text(
        str(place), column="text", tokenizer="bpe", vocab_size=280, begun=begun
    )


def test_a_copy_of_a_large_text_is_the_same(folder, tmp_path, large):
    copy = copied(folder, tmp_path / "copy")
    assert (copy / "a.txt").stat().st_mtime_ns != (folder / "a.txt").stat().st_mtime_ns
    assert text.corpus(str(copy)).identified() == text.corpus(str(folder)).identified()
    assert open_text(copy).fingerprint() == open_text(folder).fingerprint()
    (copy / "a.txt").write_text((copy / "a.txt").read_text().replace("long", "song"))
    assert text.corpus(str(copy)).identified() != text.corpus(str(folder)).identified()


def test_large_and_small_inputs_are_told_by_one_rule(folder, monkeypatch):
    small = text.corpus(str(folder)).identified()
    monkeypatch.setattr(content, "_LARGE_BYTES", 10)
    assert text.corpus(str(folder)).identified() == small


def test_a_second_start_reads_only_what_changed(folder, large, read):
    first = text.corpus(str(folder)).identified()
    assert sorted(read) == ["a.txt", "b.txt"]
    read.clear()
    assert text.corpus(str(folder)).identified() == first and read == []
    changed = (folder / "b.txt").read_text().replace("b", "c")  # as long, and of the same time
    (folder / "b.txt").write_text(changed)
    os.utime(folder / "b.txt", (OLD, OLD))
    assert text.corpus(str(folder)).identified() != first and read == ["b.txt"]


def test_what_has_just_been_written_is_not_remembered(folder, monkeypatch, read):
    monkeypatch.setattr(content, "_LARGE_BYTES", 10)
    for _ in range(2):
        assert content.Listing([folder / "a.txt"], [14_000]).facts
    assert read == ["a.txt", "a.txt"]


def test_only_who_asks_for_the_content_reads_it(folder, read):
    assert list(text.corpus(str(folder)).units)
    assert read == []


def test_long_hashing_is_said(folder, large, monkeypatch, capsys):
    text.corpus(str(folder)).identified()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(content, "_TOLD_AFTER_S", -1)
    shutil.rmtree(folder.parent / "home")
    text.corpus(str(folder)).identified()
    assert "hashing 0.0 GB of input, once for all starts\n" in capsys.readouterr().err


def test_a_file_that_goes_away_is_one_error(folder, large):
    listed = text.corpus(str(folder))
    (folder / "b.txt").unlink()
    with pytest.raises(DataError, match=r"b\.txt cannot be read"):
        listed.identified()


# ── Work that began while large files were known by their times ───────────────────────────────────


def former_rule(patch):
    patch.setattr(content.Listing, "facts", property(lambda self: self.former_facts))
    patch.setattr(content.Listing, "identity", property(lambda self: self.former_identity))


def test_data_prepared_under_the_former_rule_is_taken_up(folder, tmp_path, large):
    options = {"input": str(folder), "vocab_size": 280, "val_fraction": 0.2, "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        former_rule(patch)
        old = prepare(out=tmp_path / "data", **options)
    assert (
        old.parameters["files"]
        == content.Listing(
            *zip(*((p, p.stat().st_size) for p in sorted(folder.iterdir())), strict=True)
        ).former_identity
    )
    assert prepare(out=tmp_path / "data", **options) == old
    new = prepare(out=tmp_path / "new", **options)
    assert new.parameters["files"] != old.parameters["files"]
    os.utime(folder / "a.txt", (OLD, OLD + 1))  # nobody can tell what it was
    with pytest.raises(DataError, match="with other parameters: files"):
        prepare(out=tmp_path / "data", **options)
    assert prepare(out=tmp_path / "new", **options) == new
    assert previous_parameters(tmp_path / "new", WORK) == new.parameters


def test_a_curation_of_the_former_rule_is_taken_up(folder, tmp_path, large):
    options = Options(out=tmp_path / "clean", input=str(folder), rules=(), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        former_rule(patch)
        old = curate(options, progress=False)
    assert curate(options, progress=False) == old


def test_a_run_on_text_that_began_under_the_former_rule_goes_on(folder, large):
    with pytest.MonkeyPatch.context() as patch:
        former_rule(patch)
        old = open_text(folder)
    assert open_text(folder, old.fingerprint()).fingerprint() == old.fingerprint()
    assert open_text(folder).fingerprint() != old.fingerprint()
    os.utime(folder / "a.txt", (OLD, OLD + 1))
    now = open_text(folder, old.fingerprint())
    assert now.fingerprint() != old.fingerprint()
    assert on_the_fly.changed_files(old.fingerprint(), now) == []  # as far as is known


def test_conversations_are_known_by_content_too(tmp_path, large):
    row = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "a.jsonl").write_text(row)
    before = conversations([str(tmp_path / "a.jsonl")]).identified()
    os.utime(tmp_path / "a.jsonl", (time.time() - 60,) * 2)
    assert conversations([str(tmp_path / "a.jsonl")]).identified() == before


def test_a_stage_finds_what_it_made_under_the_former_rule(tmp_path, large):
    (tmp_path / "a.jsonl").write_text("{}\n" * 9)

    def source():
        return Source(Entry("a", 1.0), conversations([str(tmp_path / "a.jsonl")]), None)

    with pytest.MonkeyPatch.context() as patch:
        former_rule(patch)
        old = source().identity(0)
    assert source().identity(0, former=True) == old != source().identity(0)

"""Data that does not belong to the run: one line, exit 2, before or while it trains."""

import json
import os
import shutil

import pytest

import runs
from gaia.data.loader import Loader
from gchat.__main__ import main


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A data set of another tokenizer, and of another number of shards."""
    return runs.make_data(tmp_path_factory.mktemp("foreign"), vocab_size=290, documents=60, seed=1)


def refused(capsys, args, *said):
    capsys.readouterr()
    assert main(["train", *map(str, args)]) == 2
    lines = capsys.readouterr().err.splitlines()
    # On a busy machine the run's own alerts (throughput dropped) come before it.
    (text,) = [line for line in lines if not line.startswith("gaia-metrics: warn")]
    for words in said:
        assert words in text
    return text


def test_a_manifest_from_another_tokenizer(data_dir, foreign, tmp_path, capsys):
    folder = shutil.copytree(data_dir, tmp_path / "data")
    shutil.copy(foreign / "tokenizer.json", folder)
    said = refused(
        capsys,
        runs.arguments(folder, tmp_path / "run"),
        f"{folder} was made with another tokenizer",
    )
    for where in (data_dir, foreign):  # which is whose
        sha = json.loads((where / "manifest.json").read_text())["tokenizer"]["sha256"]
        assert sha[:12] in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_member_of_a_mixture_from_another_tokenizer(data_dir, foreign, tmp_path, capsys, first):
    members = {"ours": data_dir, "theirs": foreign}
    names = [first, *(name for name in members if name != first)]
    config = tmp_path / "mix.yaml"
    config.write_text(
        "data:\n  mixture: {" + ", ".join(f"{name}: {members[name]}" for name in names) + "}\n"
        "  weights: {ours: 0.5, theirs: 0.5}\n"
    )
    args = runs.arguments("", tmp_path / "run")
    refused(capsys, [config, *args[2:]], f"{members[names[1]]} was made with another tokenizer")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_shards_that_change_under_a_running_job(data_dir, foreign, tmp_path, capsys, monkeypatch):
    """The next shard that is read tells it; no row of the other data is trained on."""
    folder, other = tmp_path / "data", tmp_path / "other"
    folder.symlink_to(data_dir)
    other.symlink_to(foreign)
    take, numbers = Loader.__next__, []
    for where in (data_dir, foreign):
        numbers.append(len(json.loads((where / "manifest.json").read_text())["train"]))
    assert numbers[0] > numbers[1]

    def replaced(self):
        if self.step == 5:
            os.replace(other, folder)  # at once: the reader works on in its thread
        return take(self)

    monkeypatch.setattr(Loader, "__next__", replaced)
    refused(
        capsys,
        runs.arguments(folder, tmp_path / "run"),
        f"{folder} was changed while it was being read",
        f"it had {numbers[0]} shards",
        f"now has {numbers[1]} shards",
    )
    assert 5 <= max(runs.losses(tmp_path / "run")) < runs.STEPS


def test_data_prepared_again_with_one_more_document_is_refused_on_resume(tmp_path, capsys):
    text, data, run = tmp_path / "a.jsonl", tmp_path / "data", tmp_path / "run"
    lines = [json.dumps({"text": f"{runs.TEXT} number {i}"}) + "\n" for i in range(40)]

    def prepare_data(count):
        text.write_text("".join(lines[:count]))
        options = ["--tokenizer", "bpe", "--vocab-size", "300", "--overwrite"]
        args = ["--input", str(text), "--out", str(data), *options]
        assert main(["data", "prepare", *args, "--workers", "1"]) == 0
        return json.loads((data / "manifest.json").read_text())["train"]

    before = prepare_data(39)
    assert main(["train", *runs.arguments(data, run, "--warmup", 1, steps=3)]) == 0
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    resume = ["--resume", "--run-dir", run, "--extend", "--max-steps", 5]
    after = prepare_data(40)
    assert before[0]["crc32c"] != after[0]["crc32c"]
    refused(capsys, resume, f"{data} is not what the run began with", "put the old data back")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files

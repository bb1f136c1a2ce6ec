"""Runs on text that is tokenized as it is needed: the same rows and losses, bit for bit."""

import dataclasses
import gzip
import json
import shutil
import signal
import sys

import numpy as np
import pytest

import runs
from gaia import storage
from gaia.data.lengths import write_lengths
from gaia.data.loader import iter_documents
from gaia.data.manifest import load_manifest, write_manifest
from gaia.data.shards import ShardWriter
from gchat.__main__ import main
from gchat.data import on_the_fly
from gchat.data.prepare import prepare
from gchat.tokenizer import train_bpe

STEPS = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two files of text, and a tokenizer for them."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(runs.TEXT.split(), size=rng.integers(20, 90))) for _ in range(500)]
    for name, part in (("a.jsonl", texts[:300]), ("b.jsonl", texts[300:])):
        (folder / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in part))
    train_bpe(texts, 300).save(folder / "tokenizer.json")
    return folder


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(on_the_fly, "_UNIT_BYTES", (8 << 10, 8 << 10))


def arguments(corpus, run_dir, *more, steps=STEPS, text=None):
    args = runs.arguments("", run_dir, *more, steps=steps)
    at = args.index("--data-dir")
    where = text or str(corpus / "*.jsonl")
    args[at : at + 2] = ["--data.text", where, "--data.tokenizer", str(corpus / "tokenizer.json")]
    return args


def opened(corpus):
    return on_the_fly.open_text(
        str(corpus / "*.jsonl"),
        column="text",
        tokenizer=str(corpus / "tokenizer.json"),
        vocab_size=300,
    )


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The uninterrupted run, in this process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_the_fly, "_UNIT_BYTES", (8 << 10, 8 << 10))
        assert main(["train", *arguments(corpus, folder)]) == 0
    return folder


def test_its_documents_and_split_are_those_of_prepared_data(corpus, tmp_path):
    text = opened(corpus)
    assert len(text.units) > 4
    prepare(input=str(corpus / "*.jsonl"), out=tmp_path, tokenizer=str(corpus / "tokenizer.json"))
    streams = [text.read(unit) for unit in range(len(text.units))]
    ours = [tuple(d.tolist()) for s in streams for d in np.split(s.tokens_N, s.starts[1:])]
    theirs = [tuple(ids.tolist()) for ids in iter_documents(tmp_path, "train")]
    assert sorted(ours) == sorted(theirs) and ours != theirs
    folders = (text.folder, tmp_path)
    val = [sorted(tuple(ids.tolist()) for ids in iter_documents(f, "val")) for f in folders]
    assert val[0] == val[1] != []
    total = sum(map(len, theirs))
    assert text.tokens == pytest.approx(total, rel=0.1)


def as_shards(folder, text):
    """The units of a text as the shards of a data set in windows of one."""
    writers = [ShardWriter(folder, dtype=text.tokenizer.info.dtype, first_index=i,
                           shard_tokens=None) for i in range(len(text.units))]  # fmt: skip
    documents = 0
    for unit, writer in enumerate(writers):
        stream = text.read(unit)
        with writer:
            for ids in np.split(stream.tokens_N, stream.starts[1:]):
                writer.add(ids)
                documents += 1
    manifest = dataclasses.replace(
        load_manifest(text.folder),
        train=tuple(writer.shards[0] for writer in writers),
        documents={"train": documents, "val": text.manifest.documents["val"]},
        window=1,
    )
    for name in ("tokenizer.json", manifest.val[0].name):
        shutil.copy(text.folder / name, folder)
    write_lengths(folder, manifest)
    write_manifest(folder, manifest)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_losses_are_those_of_the_same_units_as_shards(corpus, tmp_path, packing):
    """An odd batch has one lane: the order of shards in windows of one, equal bit by bit."""
    folder = as_shards(tmp_path / "data", opened(corpus))
    more = ["--batch-size", 3, "--packing", packing]
    if packing != "split":
        more += ["--model.seq-len", 128]
    assert main(["train", *arguments(corpus, tmp_path / "a", *more, steps=40)]) == 0
    assert main(["train", *runs.arguments(folder, tmp_path / "b", *more, steps=40)]) == 0
    assert runs.losses(tmp_path / "a") == runs.losses(tmp_path / "b")
    summaries = [json.loads((tmp_path / r / "summary.json").read_text()) for r in "ab"]
    for name in ("val_bpb", "train_loss"):
        assert summaries[0][name] == summaries[1][name]
    assert all(0 < s["bigram_bpb"] < s["unigram_bpb"] for s in summaries)


@pytest.mark.slow
def test_a_kill_and_a_move_change_no_bit(whole, corpus, tmp_path, user_environment):
    """Killed, its text moved elsewhere, resumed without what was counted."""
    script = (
        "import sys; from gchat.data import on_the_fly; from gaia.errors import run_cli\n"
        "from gchat import train; on_the_fly._UNIT_BYTES = (8 << 10, 8 << 10)\n"
        "sys.exit(run_cli('gchat', train.run, sys.argv[1:]))"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", script]
    process = runs.Process([*command, *arguments(corpus, folder)], user_environment)
    assert process.step_reached(44), process.text
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    moved = shutil.copytree(corpus, tmp_path / "moved")
    resume = ["--resume", "--run-dir", str(folder), "--data.text", str(moved / "*.jsonl")]
    assert runs.newest(folder), "killed before its first checkpoint"
    for counts in opened(corpus).folder.glob("rows-*.txt"):
        counts.unlink()
    assert main(["train", *resume]) == 0
    expected, got = runs.arrays(whole, STEPS), runs.arrays(folder, STEPS)
    assert all((array == got[path]).all() for path, array in expected.items())
    assert runs.losses(folder) == runs.losses(whole)


@pytest.mark.slow
def test_from_a_bucket_it_is_the_same_run(gcs, whole, corpus, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "tokenizer.json"):
        storage.write_bytes(f"{gcs.uri}/text/{name}", (corpus / name).read_bytes())
    args = arguments(corpus, tmp_path / "run", text=f"{gcs.uri}/text")
    assert main(["train", *args]) == 0
    assert runs.losses(tmp_path / "run") == runs.losses(whole)


# ── Refusals: one line, exit 2 ────────────────────────────────────────────────────────────────────


def refused(capsys, args, *said):
    capsys.readouterr()
    assert main(["train", *map(str, args)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    for words in said:
        assert words in text


def test_text_that_changed_is_named_on_resume(whole, corpus, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    moved = shutil.copytree(corpus, tmp_path / "moved")
    with open(moved / "b.jsonl", "a") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    (moved / "c.jsonl").write_text(json.dumps({"text": "a new file"}) + "\n")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    resume = ["--resume", "--run-dir", run, "--data.text", moved / "*.jsonl"]
    refused(
        capsys,
        [*resume, "--extend", "--max-steps", STEPS + 5],
        "is not what the run began with",
        "(b.jsonl is another, c.jsonl is new)",
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data-dir", "x"], "data.dir = 'x' does not go with data.text"),
        (["--data.window", "2"], "data.window = 2 does not go with data.text"),
        (["--data.tokenizer", "gpt3"], "data.tokenizer = 'gpt3' is unknown"),
        (["--data.text", "nowhere/*.txt"], "'nowhere/*.txt' is not there"),
        (["--data.text-column", "body"], "a.jsonl line 1 has no field 'body'; it has: text"),
    ],
)
def test_what_cannot_work_is_one_line(corpus, tmp_path, capsys, more, said):
    refused(capsys, arguments(corpus, tmp_path / "run", *more), said)
    assert not (tmp_path / "run").exists()


def test_text_too_short_is_one_line(corpus, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("a single document")
    args = arguments(corpus, tmp_path / "run", text=str(tmp_path / "one.txt"))
    refused(capsys, args, "gave 0 training and 1 validation documents")


def test_a_long_compressed_file_is_refused_with_the_way_out(monkeypatch, corpus, tmp_path, capsys):
    monkeypatch.setattr(on_the_fly, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(on_the_fly, "_UNIT_BYTES", (100, 100))
    noise = np.random.default_rng(0).integers(32, 127, 20_000).astype(np.uint8).tobytes().decode()
    (tmp_path / "long.txt.gz").write_bytes(gzip.compress(noise.encode()))
    args = arguments(corpus, tmp_path / "run", text=str(tmp_path / "long.txt.gz"))
    refused(capsys, args, "long.txt.gz is one piece of", "`gchat data prepare`")


def test_a_short_compressed_file_is_read_in_interleaved_parts(monkeypatch, corpus, tmp_path):
    lines = (corpus / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    monkeypatch.setattr(on_the_fly, "_UNIT_BYTES", (1000, 1000))
    options = {"column": "text", "tokenizer": str(corpus / "tokenizer.json"), "vocab_size": 300}
    text = on_the_fly.open_text(str(tmp_path / "a.jsonl.gz"), **options)
    assert len(text.units) == 16
    documents = [len(text.read(unit).starts) for unit in range(16)]
    assert min(documents) > 10
    assert sum(documents) + text.manifest.documents["val"] == 300

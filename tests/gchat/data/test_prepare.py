"""Preparation: finished, interrupted, repeated, refused; nothing half-written."""

import functools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tyro

from gaia.data.loader import iter_documents
from gaia.data.manifest import Manifest, ShardInfo, TokenizerInfo
from gaia.data.shards import verify
from gaia.errors import ConfigError, DataError, GaiaError
from gchat.data import buckets, cli, pool, work
from gchat.data.prepare import prepare, size
from gchat.data.sources import text
from gchat.tokenizer import Tokenizer

WORDS = ["the", "loss", "falls", "slowly", "when", "data", "and", "model", "agree"]


def write_corpus(folder, files=4, documents=30):
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = []
    for f in range(files):
        texts = [f"document {f} {d} " + " ".join(rng.choice(WORDS, 20)) for d in range(documents)]
        lines = "\n".join(json.dumps({"text": t}) for t in texts)
        (folder / f"{f}.jsonl").write_text(lines)
        written += texts
    return written


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "corpus"
    return folder, write_corpus(folder)


def run(corpus, out, **options):
    options = {"vocab_size": 300, "shard_tokens": 500, "val_fraction": 0.1, "workers": 1} | options
    return prepare(source="text", input=str(corpus[0]), out=out, **options)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_document_is_stored_once(corpus, tmp_path):
    manifest = run(corpus, tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / "out")
    stored = {
        split: [tokenizer.decode(ids[1:]) for ids in iter_documents(tmp_path / "out", split)]
        for split in ("train", "val")
    }
    assert sorted(stored["train"] + stored["val"]) == sorted(corpus[1])
    assert stored["train"] != sorted(stored["train"])  # shuffled
    assert 2 <= len(stored["val"]) <= 30
    assert all(ids[0] == tokenizer.bos_id for ids in iter_documents(tmp_path / "out", "train"))
    assert verify(tmp_path / "out") == manifest
    assert manifest.tokenizer == tokenizer.info
    assert manifest.text_bytes["train"] == sum(len(t.encode()) for t in stored["train"])
    lengths = np.load(tmp_path / "out" / "token_bytes.npy")
    np.testing.assert_array_equal(lengths, tokenizer.token_bytes())
    assert sorted(content(tmp_path / "out")) == sorted(
        ["manifest.json", "lengths.npz", "token_bytes.npy", "tokenizer.json"]
        + ["test-tokens.arrayrecord"]
        + [shard.name for shard in manifest.train]
    )


def test_lengths_for_packing_are_counted_once_and_again_on_demand(corpus, tmp_path, capsys):
    from gaia.data.lengths import LENGTHS, read_lengths
    from gchat.__main__ import main

    out = tmp_path / "out"
    manifest = run(corpus, out)
    lengths = np.concatenate([np.repeat(*shard) for shard in read_lengths(out, manifest)])
    assert sorted(lengths) == sorted(map(len, iter_documents(out, "train")))
    before = content(out)
    for again in (lambda: run(corpus, out), lambda: main(["data", "lengths", str(out)])):
        (out / LENGTHS).unlink()  # as data of before there was packing
        again()
        assert content(out) == before
    assert f"lengths of {len(lengths):,} documents" in capsys.readouterr().out


def test_the_split_does_not_depend_on_the_seed(corpus, tmp_path):
    run(corpus, tmp_path / "a", seed=0)
    run(corpus, tmp_path / "b", seed=1)
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    assert first["tokens-00000.arrayrecord"] != second["tokens-00000.arrayrecord"]
    stored = [
        sorted(ids.tolist() for ids in iter_documents(tmp_path / name, "val"))
        for name in ("a", "b")
    ]
    assert stored[0] == stored[1]


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop_at", [0, 2, "tokenizer", "shuffle", "named", "finish"])
def test_an_interrupted_preparation_goes_on(corpus, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(text, "UNIT_BYTES", 1)  # one unit per file
    run(corpus, tmp_path / "whole")
    encode, shuffle, rename = work.Encode.__call__, work.Shuffle.__call__, work._named
    done: list[int] = []
    groups: list[int] = []

    def first(self, task):
        if task[0] == stop_at:
            raise KeyboardInterrupt
        done.append(task[0])
        return encode(self, task)

    def second(self, task):
        if task[0] == 2 and stop_at == "shuffle":
            raise KeyboardInterrupt
        groups.append(task[0])
        return shuffle(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(work.Encode, "__call__", first)
        patch.setattr(work.Shuffle, "__call__", second)
        if stop_at == "tokenizer":
            patch.setattr("gchat.tokenizer.train_bpe", interrupt)
        if stop_at == "named":  # half of the shards have their names
            patch.setattr(
                work,
                "_named",
                lambda p, s, n: (rename(p, s[: len(s) // 2], n[: len(s) // 2]), interrupt()),
            )
        if stop_at == "finish":
            patch.setattr("gchat.data.ending.write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "cut")
    assert not (tmp_path / "cut" / "manifest.json").exists()
    (tmp_path / "cut" / ".lengths.npz.1.ab.tmp").write_text("left by kill -9")
    stop_at = None
    with monkeypatch.context() as patch:  # what was finished is not done again
        patch.setattr(work.Encode, "__call__", first)
        patch.setattr(work.Shuffle, "__call__", second)
        run(corpus, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert sorted(done) == [0, 1, 2, 3]
    assert len(set(groups)) == len(groups) > 3


def test_the_number_of_workers_does_not_change_a_byte(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "UNIT_BYTES", 1)
    run(corpus, tmp_path / "one", workers=1)
    run(corpus, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_memory_per_process_does_not_change_a_byte(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "a", workers=1)
    small = functools.partial(work.Encode, run_tokens=200)
    monkeypatch.setattr(work, "Encode", small)
    run(corpus, tmp_path / "b", workers=1)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_every_order_is_a_fair_one(tmp_path):
    """Places of the first document over many seeds: neither bucket nor key may prefer any."""
    places = np.zeros(8)
    for seed in range(2000):
        keys = buckets.keys(seed, 3, 8)
        places[np.argsort(np.argsort(keys))[0]] += 1
    assert abs(places - 250).max() < 80  # five standard deviations
    counts = np.bincount(buckets.bucket_of(buckets.keys(7, 0, 100_000), 1000), minlength=1000)
    assert abs(counts - 100).max() < 60
    assert len(set(buckets.keys(0, 0, 1000)) | set(buckets.keys(0, 1, 1000))) == 2000


KILLED = """
import sys
from gchat.data import cli
from gchat.data.sources import text
text.UNIT_BYTES = 1
if __name__ == "__main__":
    cli.parse_verb("prepare", sys.argv[1:]).run()
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path, user_environment):
    """The main process is killed; its workers end too, and the next run finishes the work."""
    write_corpus(tmp_path / "corpus", files=12, documents=400)
    script = tmp_path / "prepare_it.py"
    script.write_text(KILLED)

    def start(out):
        command = [sys.executable, str(script), "--input", str(tmp_path / "corpus")]
        command += ["--out", str(out), "--vocab-size", "300", "--shard-tokens", "2000"]
        return subprocess.Popen([*command, "--workers", "2"], env=user_environment)

    assert start(tmp_path / "whole").wait() == 0
    kills = 0
    for markers in (1, 4, 9, 13, 20):  # units first, then shards
        process = start(tmp_path / "cut")
        while process.poll() is None:
            if len(list((tmp_path / "cut").glob(".prepare/*.json"))) >= markers:
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert kills >= 3
    assert start(tmp_path / "cut").wait() == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_killed_worker_is_one_line(tmp_path):
    with pytest.raises(pool.WorkerError, match=r"worker process was killed .*run it again"):
        pool.run(os._exit, [1, 2], 2, lambda *_: None)


def test_a_worker_hands_its_error_back():
    with pytest.raises(ConfigError) as found:
        pool.run(size, ["big", "1K"], 2, lambda *_: None)
    assert found.value.remedy == "use e.g. 500M, 128Mi or 1G"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("500M", 500_000_000), ("1.5GB", 1_500_000_000), ("64Mi", 64 << 20), ("2000", 2000)],
)
def test_sizes_have_suffixes(given, expected):
    assert size(given) == expected


def test_shards_have_the_size_asked_for(corpus, tmp_path):
    manifest = run(corpus, tmp_path / "out", shard_size="2K")
    sizes = [2 * shard.tokens for shard in manifest.train]
    assert len(sizes) > 3 and max(sizes) < 2600 and min(sizes) > 1000
    for bad in ("big", "5X", "", "3"):
        with pytest.raises(ConfigError, match="is no size"):
            run(corpus, tmp_path / "bad", shard_size=bad)


def test_a_finished_data_set_is_taken_or_refused(corpus, tmp_path, monkeypatch):
    manifest = run(corpus, tmp_path / "out")
    before = content(tmp_path / "out")
    monkeypatch.setattr(work, "encode", lambda *_: pytest.fail("did the work again"))
    assert run(corpus, tmp_path / "out") == manifest
    with pytest.raises(DataError, match=r"seed 0 -> 5, vocab_size 300 -> 320; .*--overwrite"):
        run(corpus, tmp_path / "out", seed=5, vocab_size=320)
    assert content(tmp_path / "out") == before
    (tmp_path / "out" / "tokens-00001.arrayrecord").unlink()
    with pytest.raises(DataError, match=r"tokens-00001\.arrayrecord is missing"):
        run(corpus, tmp_path / "out")
    monkeypatch.undo()
    assert run(corpus, tmp_path / "out", overwrite=True) == manifest
    assert content(tmp_path / "out") == before
    assert run(corpus, tmp_path / "out", seed=5, overwrite=True) != manifest


def test_bad_input_does_not_destroy_what_is_there(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(DataError, match="not there"):
        prepare(source="text", input=str(tmp_path / "no"), out=tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 10}, "vocab_size = 10 is too small"),
        ({"val_fraction": 0.0}, "val_fraction = 0.0"),
        ({"shard_tokens": 0}, "shard_tokens = 0"),
        ({"text_column": "body"}, "has no field 'body'; it has: text"),
        ({"tokenizer": "word2vec"}, "tokenizer = 'word2vec' is unknown"),
        ({"source": "web"}, "source = 'web' is unknown"),
        ({"source": "docs"}, "does not go with source = 'docs'"),
        ({"input": None}, "input is not set"),
        ({"seed": -1}, "seed = -1 is out of range"),
        ({"seed": 2**63}, "seed = 9223372036854775808 is out of range"),
        ({"out": "gs://bucket/data"}, "not a local folder"),
    ],
)
def test_bad_parameters_leave_nothing_behind(corpus, tmp_path, options, message):
    options = {"source": "text", "input": str(corpus[0]), "out": tmp_path / "out"} | options
    with pytest.raises(GaiaError, match=message):
        prepare(**options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"\0\1\2" * 100, "NUL bytes"),
        ("a.txt", bytes(range(128, 256)) * 50, "not UTF-8 text"),
        ("a.txt", b" \n\n \n", "0 training and 0 validation documents"),
        ("a.txt", b"only one document", "0 training and 1 validation documents"),
        ("a.parquet", b"no parquet", "not readable as parquet"),
    ],
)
def test_unusable_text_leaves_nothing_behind(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare(source="text", input=str(tmp_path / name), out=tmp_path / "out", vocab_size=300)
    assert not (tmp_path / "out").exists()


def test_invalid_utf8_is_counted_in_the_manifest(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(
        b"\n\n".join(b"caf\xe9 %d " % i + b"words " * 9 for i in range(40))
    )
    command = tyro.cli(
        cli.Prepare,
        args=[
            *("--input", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")),
            *("--vocab-size", "280", "--document-chars", "50", "--val-fraction", "0.2"),
        ],
    )
    assert command.run().invalid_utf8 == 40
    assert "40 invalid UTF-8 sequences became U+FFFD" in capsys.readouterr().err


def test_copies_stay_on_one_side(tmp_path):
    lines = [json.dumps({"text": f"text number {i % 20} with some words"}) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare(
        source="text",
        input=str(tmp_path / "a.jsonl"),
        out=tmp_path / "out",
        vocab_size=280,
        val_fraction=0.3,
    )
    sides = [
        {tuple(ids.tolist()) for ids in iter_documents(tmp_path / "out", split)}
        for split in ("train", "val")
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_a_single_document_by_hash_becomes_validation(tmp_path):
    texts = [f"text number {i} with some words" for i in range(9)]
    lines = [json.dumps({"text": t}) for t in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    manifest = prepare(
        source="text",
        input=str(tmp_path / "a.jsonl"),
        out=tmp_path / "out",
        vocab_size=280,
        val_fraction=1e-9,
    )
    assert manifest.documents == {"train": 8, "val": 1}
    assert verify(tmp_path / "out") == manifest
    tokenizer = Tokenizer.load(tmp_path / "out")
    stored = {
        split: [tokenizer.decode(d[1:]) for d in iter_documents(tmp_path / "out", split)]
        for split in ("train", "val")
    }
    assert stored["val"] == [min(texts, key=work.position)]
    assert sorted(stored["train"] + stored["val"]) == texts
    assert manifest.text_bytes["val"] == len(stored["val"][0])


def test_an_older_data_set_is_taken(corpus, tmp_path):
    manifest = run(corpus, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["parameters"]["buckets"]  # as the first version wrote it
    path.write_text(json.dumps(raw))
    assert run(corpus, tmp_path / "out").train == manifest.train


def test_count_and_verify_print_what_they_found(corpus, tmp_path, capsys):
    manifest = run(corpus, tmp_path / "out")
    tyro.cli(cli.Count, args=[str(tmp_path / "out")]).run()
    shown = f"{manifest.tokens('train') / 1000:.1f}K tokens across {len(manifest.train)} shards"
    assert capsys.readouterr().out.strip() == shown
    tyro.cli(cli.Count, args=[str(tmp_path / "out"), "--json"]).run()
    assert json.loads(capsys.readouterr().out)["tokens"] == manifest.tokens("train")
    tyro.cli(cli.Verify, args=[str(tmp_path / "out")]).run()
    assert capsys.readouterr().out.startswith(f"verified {shown}")


def test_tokens_are_counted_as_people_say_it():
    manifest = Manifest(
        tokenizer=TokenizerInfo("bpe", "", 300, 384, 299),
        train=tuple(
            ShardInfo(f"tokens-{i:05d}.arrayrecord", 1, 103_400_000_000 // 207, 1, "0")
            for i in range(207)
        ),
        val=(),
        documents={"train": 1, "val": 0},
        text_bytes={"train": 1, "val": 0},
    )
    assert manifest.count() == "103.4B tokens across 207 shards"


def test_a_stored_tokenizer_is_used(corpus, tmp_path):
    first = run(corpus, tmp_path / "a")
    second = run(corpus, tmp_path / "b", tokenizer=str(tmp_path / "a" / "tokenizer.json"))
    assert second.tokenizer == first.tokenizer
    with pytest.raises(ConfigError, match="vocab_size = 3"):
        run(corpus, tmp_path / "c", vocab_size=3)

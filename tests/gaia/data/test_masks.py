"""Loss masks: tokens, masks and targets stay together from the writer to the batch."""

import dataclasses
import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.data.batch import IGNORE
from gaia.data.lengths import write_lengths
from gaia.data.loader import iter_documents, iter_examples, make_loader
from gaia.data.manifest import Manifest, TokenizerInfo, load_manifest
from gaia.data.packing import Example
from gaia.data.rows import CacheOptions
from gaia.data.shards import ShardWriter, verify, write_shards
from gaia.errors import ConfigError, DataError

PACKINGS = ("split", "first_fit", "best_fit", "none")
BOS, PLACES = 0, 100
INFO = TokenizerInfo("bpe", "0" * 64, vocab_size=9000, padded_vocab_size=9088, bos_id=BOS)


def document(number, length):
    """Each token tells where it stands: 100 * (number + 1) + place; the first is BOS."""
    tokens = PLACES * (number + 1) + np.arange(length)
    tokens[0] = BOS
    return tokens


def examples(lengths, seed=0, whole=()):
    """Documents with random masks; those in `whole` are learned whole."""
    rng = np.random.default_rng(seed)
    for number, length in enumerate(lengths):
        mask = rng.random(length) < 0.5
        yield Example(document(number, length), mask | (number in whole))


def make(folder, items, info=None, **options):
    options = {"shard_tokens": 150, "chunk_tokens": 16, "window": 2} | options
    manifest = write_shards(folder, items, items[:1], info or INFO, **options)
    write_lengths(folder, manifest)
    return folder


def epoch_of(loader):
    """(inputs, targets) of the rows of one epoch, each row once."""
    steps = -(-len(loader.rows) // loader.batch_size)
    batches = [next(loader) for _ in range(steps)]
    both = (np.concatenate([batch[i] for batch in batches]) for i in range(2))
    return tuple(array[: len(loader.rows)] for array in both)


def expected_pairs(items, shards, seq_len, packing):
    """(token before, target) of everything that is learned, from the documents alone."""
    pairs, at = [], 0
    for shard in shards:
        here, tokens = [], 0
        while tokens < shard.tokens:
            here.append(items[at])
            tokens += len(items[at].tokens)
            at += 1
        stream = []  # (token, target, learned)
        for example in here:
            after = np.append(example.tokens[1:], BOS)
            learned = np.append(example.loss_mask[1:], example.loss_mask[0])
            stream += zip(example.tokens.tolist(), after.tolist(), learned.tolist(), strict=True)
        if packing == "split":  # the last row ends before the last token has a target
            stream = stream[: (len(stream) - 1) // seq_len * seq_len]
        pairs += [(token, target) for token, target, learned in stream if learned]
    return sorted(pairs)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=8, max_size=20),
    seed=st.integers(0, 99),
    seq_len=st.integers(4, 40),
    packing=st.sampled_from(PACKINGS),
    processes=st.sampled_from([1, 2, 4]),
    start=st.integers(1, 30),
)
def test_what_is_learned_is_what_the_masks_say(lengths, seed, seq_len, packing, processes, start):
    items = list(examples([*lengths, 90, 90], seed, whole=range(3)))
    options = {"seq_len": seq_len, "batch_size": 4, "seed": seed, "packing": packing}
    with tempfile.TemporaryDirectory() as folder:
        make(folder, items)
        for stored, item in zip(iter_examples(folder, "train"), items, strict=True):
            np.testing.assert_array_equal(stored.tokens, item.tokens)
            np.testing.assert_array_equal(stored.loss_mask, item.loss_mask)
        with make_loader(folder, **options, prefetch=0) as loader:
            inputs_RT, targets_RT = epoch_of(loader)
            shards = loader.rows.shards
            expected = [loader.batch(start + step) for step in range(3)]
        learned = targets_RT != IGNORE
        pairs = zip(inputs_RT[learned].tolist(), targets_RT[learned].tolist(), strict=True)
        assert sorted(pairs) == expected_pairs(items, shards, seq_len, packing)
        # On any number of processes, and from any step on.
        parts = []
        for index in range(processes):
            share = {"process_index": index, "process_count": processes, "start_step": start}
            with make_loader(folder, **options, **share, prefetch=0) as loader:
                parts.append([next(loader) for _ in range(3)])
        for step, whole in enumerate(expected):
            for i, array in enumerate(whole):
                if array is not None:
                    again = np.concatenate([part[step][i] for part in parts])
                    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("packing", PACKINGS)
def test_masks_that_hold_everywhere_are_no_masks(tmp_path, packing):
    lengths = [30, 7, 90, 2, 1, 55, 41, 13, 66, 8] * 3
    plain = [document(i, n) for i, n in enumerate(lengths)]
    made = {
        "plain": make(tmp_path / "plain", plain),
        "masked": make(tmp_path / "masked", [Example(d, np.ones(len(d), bool)) for d in plain]),
    }
    epochs = []
    for folder in made.values():
        with make_loader(folder, seq_len=16, batch_size=4, seed=1, packing=packing) as loader:
            epochs.append(epoch_of(loader))
    for one, other in zip(*epochs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mixture_of_plain_text_and_chats(tmp_path):
    plain = make(tmp_path / "text", [document(i, 40) for i in range(20)])
    chats = make(tmp_path / "chats", list(examples([30] * 20)))
    with make_loader(
        {"text": plain, "chats": chats}, weights={"text": 1, "chats": 1},
        seq_len=16, batch_size=4, seed=1, packing="best_fit", prefetch=0,
    ) as loader:  # fmt: skip
        seen = {"text": [], "chats": []}
        for step in range(20):
            batch, ids = next(loader), loader.row_ids(step)
            for row, row_id in enumerate(ids.tolist()):
                name = loader.locate(row_id)[0].split("/")[0]
                used = batch.segments_BT[row] > 0
                seen[name].append((batch.targets_BT[row][used] != IGNORE).mean())
    assert set(seen["text"]) == {1.0}
    assert 0.3 < np.mean(seen["chats"]) < 0.7


def test_masks_come_from_a_bucket_through_the_same_cache(gcs, tmp_path):
    from gchat.data.upload import upload
    from gchat.tokenizer import train_bpe

    tokenizer = train_bpe(["a text of mine, " * 9] * 9, 280)
    own = replace(INFO, sha256=tokenizer.sha256)
    local = make(tmp_path / "local", list(examples([30, 70, 9, 44] * 6)), own)
    tokenizer.save(local)
    assert upload(local, f"{gcs.uri}/chats").objects == len(list(local.iterdir()))
    assert verify(f"{gcs.uri}/chats") == load_manifest(local)
    options = {"seq_len": 16, "batch_size": 4, "seed": 1, "packing": "best_fit"}
    with make_loader(local, **options) as loader:
        expected = epoch_of(loader)
    cache = CacheOptions(tmp_path / "cache")
    with make_loader(f"{gcs.uri}/chats", **options, cache=cache) as loader:
        for one, other in zip(epoch_of(loader), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_long_conversations_are_cut_as_documents_are_and_counted(tmp_path):
    folder = make(tmp_path, list(examples([10, 50, 33, 32])))
    with make_loader(folder, seq_len=32, batch_size=2, seed=0, packing="best_fit") as loader:
        assert loader.describe().endswith("full, 2 longer documents are cut")
        assert [len(d) for d in iter_documents(folder, "train")] == [10, 50, 33, 32]


# ── The format ────────────────────────────────────────────────────────────────────────────────────


def records_of(folder):
    digest = hashlib.sha256()
    manifest = load_manifest(folder)
    for shard in manifest.train + manifest.val:
        reader = array_record_module.ArrayRecordReader(str(Path(folder) / shard.name))
        for record in reader.read(0, reader.num_records()):
            digest.update(record)
        reader.close()
    return digest.hexdigest()[:16]


def test_plain_text_is_written_byte_for_byte_as_ever(tmp_path):
    """If this fails, data sets that exist can no longer be made again."""
    info = dataclasses.replace(INFO, vocab_size=300, padded_vocab_size=384, bos_id=299)

    def documents(count, seed):
        for i in range(count):
            n = (i * 37 + seed) % 90 + 1
            yield np.append(299, (np.arange(n) * 7919 + i + seed) % 299)

    options = {"shard_tokens": 900, "chunk_tokens": 128, "window": 3}
    manifest = write_shards(tmp_path, documents(40, 0), documents(3, 5), info, **options)
    assert records_of(tmp_path) == "b7d8232824a9ced1"
    raw = json.loads((tmp_path / "manifest.json").read_text())
    for shard in (*raw["train"], *raw["val"]):
        del shard["bytes"], shard["crc32c"]  # of the compressed file: the compressor's business
    digest = hashlib.sha256(json.dumps(raw, indent=2, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "f8b9b386eb931283"
    assert (manifest.version, raw["version"], manifest.learned) == (1, 1, None)
    assert "learned" not in raw


def test_masks_are_written_as_ever(tmp_path):
    items = [Example(document(i, n), np.arange(n) % 3 > 0) for i, n in enumerate([9, 40, 17, 1])]
    make(tmp_path, items)
    assert records_of(tmp_path) == "d1b37f52f0442db8"
    raw = json.loads((tmp_path / "manifest.json").read_text())
    assert raw["version"] == 2
    assert raw["learned"] == {"train": 6 + 26 + 11 + 0, "val": 6}
    assert verify(tmp_path) == Manifest.from_json((tmp_path / "manifest.json").read_text())
    assert load_manifest(tmp_path).count() == "67 tokens across 1 shard, 64.2% of them learned"


def test_documents_without_a_mask_among_chats_are_learned_whole(tmp_path):
    make(tmp_path, [*examples([5]), document(1, 4), list(document(2, 3))])
    masks = [example.loss_mask.tolist() for example in iter_examples(tmp_path, "train")]
    assert masks[1:] == [[True] * 4, [True] * 3]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Example(document(0, 5), np.ones(4, bool))], "5 tokens has a loss mask of 4;"),
        (
            [document(0, 5), Example(document(1, 6), np.ones(6, bool))],
            "6 tokens has a loss mask of 6 for shards without masks",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path, items, message):
    with pytest.raises(ConfigError, match=message) as raised:
        write_shards(tmp_path, items, [], INFO)
    assert "give each token its place in the mask" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []


def change(folder, **fields):
    path = folder / "manifest.json"
    raw = {k: v for k, v in (json.loads(path.read_text()) | fields).items() if v is not None}
    path.write_text(json.dumps(raw))


def test_a_manifest_that_does_not_fit_its_shards_is_refused(tmp_path):
    chats, plain = (tmp_path / name for name in ("chats", "plain"))
    make(chats, list(examples([30, 40])))
    make(plain, [document(0, 40), document(1, 30)])
    change(chats, learned={"train": 1, "val": 1})
    with pytest.raises(DataError, match=r"train has \d+ learned tokens, manifest says 1"):
        verify(chats)
    change(chats, learned={"train": 71, "val": 1})
    with pytest.raises(DataError, match="learned 71 of train is out of range"):
        load_manifest(chats)
    change(chats, version=1, learned=None)
    with pytest.raises(DataError, match="it has loss masks, and the manifest says none"):
        verify(chats)
    change(plain, version=2, learned={"train": 1, "val": 1})
    with pytest.raises(DataError, match="it has no loss masks, and the manifest says so many"):
        verify(plain)
    change(plain, version=2, learned=None)
    with pytest.raises(DataError, match="version 2 does not go with its loss masks"):
        load_manifest(plain)


def test_a_document_is_never_divided_between_shards(tmp_path):
    """However long: what is one conversation lies in one shard."""
    with ShardWriter(tmp_path, dtype=INFO.dtype, shard_tokens=20, masked=True) as writer:
        for example in examples([30, 5, 90, 15, 4]):
            writer.add(*example)
    assert [shard.tokens for shard in writer.shards] == [30, 95, 19]

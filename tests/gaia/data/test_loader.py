"""Shards, rows and their order: every row once, on any number of hosts, and never a wrong one."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.data.loader import iter_documents, make_loader
from gaia.data.manifest import TokenizerInfo, load_manifest
from gaia.data.order import BatchOrder, permutation
from gaia.data.rows import TokenRows
from gaia.data.shards import read_shard, verify, write_shards
from gaia.errors import ConfigError, DataError

BOS = 299
INFO = TokenizerInfo("bpe", "0" * 64, vocab_size=300, padded_vocab_size=384, bos_id=BOS)


def documents(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.concatenate([[BOS], rng.integers(0, BOS, int(rng.integers(1, 90)))])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Several shards, each of several chunks, with chunk borders inside documents."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(
        folder, documents(200), documents(9, 1), INFO, shard_tokens=900, chunk_tokens=128, window=3
    )
    return folder


def copy_of(data, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


# ── Shards ────────────────────────────────────────────────────────────────────────────────────────


def test_shards_hold_what_was_written(data):
    manifest = verify(data)
    assert len(manifest.train) > 5 and len(manifest.val) == 1
    assert manifest.val[0].name == "test-tokens.arrayrecord"
    assert [s.name for s in manifest.train][:2] == [
        "tokens-00000.arrayrecord",
        "tokens-00001.arrayrecord",
    ]
    for split, expected in (("train", documents(200)), ("val", documents(9, 1))):
        found = list(iter_documents(data, split))
        assert manifest.documents[split] == len(found)
        for document, written in zip(found, expected, strict=True):
            np.testing.assert_array_equal(document, written)
    assert manifest.tokens("train") == sum(len(d) for d in documents(200))


def test_large_vocabulary_is_stored_in_32_bits(tmp_path):
    info = dataclasses.replace(INFO, vocab_size=70_000, padded_vocab_size=70_016, bos_id=69_999)
    document = np.array([69_999, 69_998, 65_536, 3])
    manifest = write_shards(tmp_path, [document], [document], info)
    assert manifest.dtype == "uint32"
    np.testing.assert_array_equal(next(iter_documents(tmp_path, "train")), document)


def test_an_error_while_writing_leaves_no_shard(tmp_path):
    def broken():
        yield from documents(5)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write_shards(tmp_path, broken(), documents(1), INFO)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
import numpy as np
from gaia import storage
from gaia.data.manifest import TokenizerInfo
from gaia.data.shards import write_shards
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
info = TokenizerInfo("bpe", "", 60_000, 60_032, 0)
rng = np.random.default_rng(0)
try:
    write_shards(sys.argv[1], (rng.integers(0, 60_000, 500) for _ in range(900)), [], info)
except storage.StorageError as error:
    print(error)
"""


def test_a_full_disk_is_reported_and_leaves_no_shard(tmp_path):
    """A file size limit stands in for the full disk: writing fails in the same place."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert "cannot write shard tokens-00000.arrayrecord" in done.stdout
    assert "make room on the disk" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("position", [0.1, 0.5, 0.99])
def test_a_flipped_bit_stops_before_a_row_is_used(data, tmp_path, position):
    folder = copy_of(data, tmp_path)
    shard = folder / "tokens-00002.arrayrecord"
    content = bytearray(shard.read_bytes())
    content[int(len(content) * position)] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens-00002\.arrayrecord.*crc32c"):
        verify(folder)
    with make_loader(folder, seq_len=16, batch_size=4, seed=0) as loader:
        bad = loader.rows.offsets[2], loader.rows.offsets[3]
        steps = int(loader.steps_per_epoch)
        with pytest.raises(DataError, match=r"tokens-00002\.arrayrecord"):
            for _ in range(steps):
                next(loader)
        given = [i for step in range(loader.step) for i in loader.row_ids(step)]
        assert not any(bad[0] <= i < bad[1] for i in given)


def test_a_truncated_or_missing_shard_is_named(data, tmp_path):
    folder = copy_of(data, tmp_path)
    shard = folder / "tokens-00001.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-100])
    (folder / "tokens-00003.arrayrecord").unlink()
    with pytest.raises(DataError, match=r"00001.* bytes.*00003.*does not exist"):
        verify(folder)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("records", 1, "records, manifest says"),
        ("tokens", 1, "manifest says"),
        ("tokens", -1, "tokens of the manifest"),
        ("bytes", 1, "bytes, manifest says"),
    ],
)
def test_counts_that_disagree_are_refused(data, tmp_path, field, change, message):
    folder = copy_of(data, tmp_path)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["train"][0][field] += change
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"tokens-00000.*{message}"):
        verify(folder)
    rows = TokenRows(folder, "train", 16)
    with pytest.raises(DataError, match=r"tokens-00000\.arrayrecord"):
        rows.gather(np.array([0]))
    rows.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"dtype": "uint32"}, "dtype"),
        ({"train": []}, "no training shard"),
        ({"surprise": 1}, "damaged"),
        ({"window": 0}, "window"),
    ],
)
def test_a_wrong_manifest_is_refused(data, tmp_path, change, message):
    raw = json.loads((data / "manifest.json").read_text()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path)


def test_ids_outside_the_vocabulary_are_refused(data, tmp_path):
    folder = copy_of(data, tmp_path)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["tokenizer"] |= {"vocab_size": 200, "padded_vocab_size": 256, "bos_id": 199}
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match="outside the vocabulary of 200"):
        verify(folder)


# ── Rows ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seq_len", [1, 7, 64, 200])
def test_rows_are_slices_of_the_shard_for_any_length(data, seq_len):
    rows = TokenRows(data, "train", seq_len)
    manifest = rows.manifest
    expected = []
    for shard in manifest.train:
        stream = read_shard(data, shard, manifest).tokens_N
        for r in range((len(stream) - 1) // seq_len):
            expected.append(stream[r * seq_len : (r + 1) * seq_len + 1])
    inputs_BT, targets_BT, *absent = rows.gather(np.arange(len(rows)))
    assert absent == [None] * 4  # one stream has no segments
    rows.close()
    np.testing.assert_array_equal(inputs_BT, [row[:-1] for row in expected])
    np.testing.assert_array_equal(targets_BT, [row[1:] for row in expected])
    assert inputs_BT.dtype == targets_BT.dtype == np.int32


def test_a_row_is_named_by_shard_and_place(data):
    rows = TokenRows(data, "train", 16)
    assert rows.locate(int(rows.offsets[2]) + 3) == ("tokens-00002.arrayrecord", 3)
    rows.close()


# ── Order ─────────────────────────────────────────────────────────────────────────────────────────

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 10), st.integers(-(2**40), 2**70), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_and_w_shards_at_a_time(counts, window, seed, epoch):
    order = BatchOrder(counts, window, seed)
    total = sum(counts)
    rows = order.row_ids(epoch * total, total)
    assert sorted(rows) == list(range(total))
    shard = np.searchsorted(np.cumsum(counts), rows, side="right")
    # At no time are more than W shards begun and not yet used up.
    begun = {s: int(np.flatnonzero(shard == s)[0]) for s in set(shard.tolist())}
    ended = {s: int(np.flatnonzero(shard == s)[-1]) for s in begun}
    for at in range(total):
        assert sum(begun[s] <= at <= ended[s] for s in begun) <= window


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 4), st.integers(0, 99), st.integers(0, 200), st.integers(1, 60))
def test_a_position_has_one_row_however_it_is_asked_for(counts, window, seed, start, count):
    together = BatchOrder(counts, window, seed).row_ids(start, count)
    order = BatchOrder(counts, window, seed)
    alone = [int(order.row_ids(p, 1)[0]) for p in reversed(range(start, start + count))]
    assert together.tolist() == alone[::-1]


def test_epochs_and_seeds_differ():
    order = BatchOrder([50, 50], 2, 0)
    assert (order.row_ids(0, 100) != order.row_ids(100, 100)).any()
    assert (order.row_ids(0, 100) != BatchOrder([50, 50], 2, 1).row_ids(0, 100)).any()


def test_the_order_is_the_same_for_ever():
    """Runs continue across upgrades: if this fails, the change breaks every running experiment."""
    assert permutation(8, 1, 2).tolist() == [1, 6, 0, 2, 3, 7, 5, 4]
    assert BatchOrder([3, 4, 5], 2, 7).row_ids(0, 14).tolist() == [
        8,
        3,
        5,
        9,
        10,
        11,
        7,
        6,
        4,
        2,
        0,
        1,
        1,
        2,
    ]


# ── Loader ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_batch_does_not_depend_on_the_number_of_hosts(data, processes):
    with make_loader(data, seq_len=16, batch_size=8, seed=3, prefetch=0) as alone:
        steps = int(2.5 * alone.steps_per_epoch)
        expected = [next(alone) for _ in range(steps)]
        seen = np.concatenate([alone.row_ids(k) for k in range(steps)])
        total = len(alone.rows)
    assert sorted(seen[:total]) == sorted(seen[total : 2 * total]) == list(range(total))
    parts = []
    for index in range(processes):
        with make_loader(
            data, seq_len=16, batch_size=8, seed=3, process_index=index, process_count=processes
        ) as loader:
            parts.append([next(loader) for _ in range(steps)])
    for step in range(steps):
        for i, array in enumerate(expected[step][:2]):
            whole = np.concatenate([part[step][i] for part in parts])
            np.testing.assert_array_equal(whole, array)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_it_continues_exactly_at_any_step(data, prefetch):
    with make_loader(data, seq_len=16, batch_size=8, seed=3, prefetch=prefetch) as loader:
        batches = [next(loader) for _ in range(60)]
        assert loader.step == 60
    for start in (1, 37):
        with make_loader(
            data, seq_len=16, batch_size=8, seed=3, start_step=start, prefetch=prefetch
        ) as loader:
            batch = next(loader)
            inputs_BT = loader.rows.gather(loader.row_ids(start)).inputs_BT
        np.testing.assert_array_equal(batch.inputs_BT, batches[start].inputs_BT)
        np.testing.assert_array_equal(batch.inputs_BT, inputs_BT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seq_len": 0}, ConfigError, "seq_len = 0"),
        ({"batch_size": 0}, ConfigError, "batch_size = 0"),
        ({"batch_size": 6, "process_count": 4}, ConfigError, "not divisible"),
        ({"process_index": 2, "process_count": 2}, ConfigError, "process_index = 2"),
        ({"batch_size": 100_000}, DataError, "less than one batch of 100000"),
        ({"seq_len": 5000}, DataError, "has 0 rows"),
        ({"split": "dev"}, DataError, "split = 'dev'"),
    ],
)
def test_impossible_settings_are_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        make_loader(data, **{"seq_len": 16, "batch_size": 8, "seed": 0, **options})


def test_missing_and_unfinished_data_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        load_manifest(tmp_path)

"""Packed rows of a data set: every document once, on any number of hosts, from disk or bucket."""

import shutil

import numpy as np
import pytest

from gaia import storage
from gaia.data.batch import Batch
from gaia.data.lengths import LENGTHS, read_lengths, write_lengths
from gaia.data.loader import make_loader
from gaia.data.manifest import TokenizerInfo, load_manifest
from gaia.data.rows import CacheOptions, TokenRows
from gaia.data.shards import write_shards
from gaia.errors import ConfigError, DataError

BOS = 299
INFO = TokenizerInfo("bpe", "0" * 64, vocab_size=300, padded_vocab_size=384, bos_id=BOS)
OPTIONS = {"seq_len": 32, "batch_size": 8, "seed": 3, "prefetch": 0}
FITS = ("first_fit", "best_fit", "none")


def documents(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.concatenate([[BOS], rng.integers(0, BOS, int(rng.integers(0, 90)))])


def make(folder, *, seed=0, count=200, window=3):
    manifest = write_shards(
        folder, documents(count, seed), documents(9, 1), INFO,
        shard_tokens=900, chunk_tokens=128, window=window,
    )  # fmt: skip
    write_lengths(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"))


def epoch_of(loader):
    """The rows of one epoch as one batch (the last step reaches into the next epoch)."""
    steps = -(-len(loader.rows) // loader.batch_size)
    batches = [next(loader) for _ in range(steps)]
    arrays = (np.concatenate(parts) for parts in zip(*(b[:4] for b in batches), strict=True))
    return Batch(*(array[: len(loader.rows)] for array in arrays))


def pieces_of(rows):
    """(tokens, targets) of every segment of a batch."""
    for inputs, targets, _, segments in zip(*rows[:4], strict=True):
        for segment in range(1, segments.max() + 1):
            yield tuple(inputs[segments == segment]), tuple(targets[segments == segment])


def expected_pieces(found):
    for document in found:
        after = np.append(document[1:], BOS)
        for at in range(0, len(document), 32):
            yield tuple(document[at : at + 32]), tuple(after[at : at + 32])


@pytest.mark.parametrize("packing", FITS)
def test_an_epoch_holds_every_document_once(data, packing):
    with make_loader(data, **OPTIONS, packing=packing) as loader:
        rows = epoch_of(loader)
        said = loader.describe()
    assert sorted(pieces_of(rows)) == sorted(expected_pieces(documents(200)))
    fill = (rows.segments_BT > 0).mean()
    cut = sum(len(d) > 32 for d in documents(200))
    assert said == (
        f"packing: {packing}, {len(rows.inputs_BT):,} rows of 32 are {fill:.2%} full, "
        f"{cut} longer documents are cut"
    )
    assert fill > 0.9 or packing == "none"


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_packed_batches_do_not_depend_on_the_number_of_hosts(data, processes):
    with make_loader(data, **OPTIONS, packing="best_fit") as alone:
        steps = int(2.5 * alone.steps_per_epoch)
        expected = [next(alone) for _ in range(steps)]
    parts = []
    for index in range(processes):
        share = {"process_index": index, "process_count": processes, "prefetch": 3}
        with make_loader(data, **(OPTIONS | share), packing="best_fit") as loader:
            parts.append([next(loader) for _ in range(steps)])
    for step in range(steps):
        for i, array in enumerate(expected[step][:4]):
            whole = np.concatenate([part[step][i] for part in parts])
            np.testing.assert_array_equal(whole, array)


@pytest.mark.parametrize("start", [1, 37])
def test_packed_batches_continue_at_any_step(data, start):
    with make_loader(data, **OPTIONS, packing="best_fit") as loader:
        batches = [next(loader) for _ in range(40)]
    with make_loader(data, **OPTIONS, packing="best_fit", start_step=start) as loader:
        batch = next(loader)
    for array, expected in zip(batch[:4], batches[start][:4], strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_bucket_gives_the_same_packed_batches(gcs, data, tmp_path):
    """Rows are counted from lengths.npz: no shard is read but those of the first windows."""
    for file in data.iterdir():
        storage.write_bytes(f"{gcs.uri}/{file.name}", file.read_bytes())
    gcs.control({"reset_stats": True})
    with make_loader(data, **OPTIONS, packing="best_fit") as loader:
        expected = epoch_of(loader)
    cache = CacheOptions(tmp_path)
    with make_loader(gcs.uri, **OPTIONS, packing="best_fit", cache=cache) as loader:
        first = next(loader)
        assert len(list(tmp_path.rglob("*.arrayrecord"))) <= 2 * loader.rows.manifest.window
    with make_loader(gcs.uri, **OPTIONS, packing="best_fit", cache=cache) as loader:
        got = epoch_of(loader)
    for array, same, begin in zip(expected[:4], got[:4], first[:4], strict=True):
        np.testing.assert_array_equal(same, array)
        np.testing.assert_array_equal(same[:8], begin)


def test_a_mixture_is_packed_source_by_source(data, tmp_path):
    other = make(tmp_path, seed=5, count=60)
    with make_loader(
        {"a": data, "b": other}, weights={"a": 1, "b": 3}, **OPTIONS, packing="best_fit"
    ) as loader:
        rows = {"a": TokenRows(data, "train", 32, packing="best_fit"),
                "b": TokenRows(other, "train", 32, packing="best_fit")}  # fmt: skip
        assert len(loader.rows) == len(rows["a"]) + len(rows["b"])
        batch, ids = next(loader), loader.row_ids(0)
        said = loader.metrics(10)
    for i, row in enumerate(ids):
        name, local = ("a", row) if row < len(rows["a"]) else ("b", row - len(rows["a"]))
        alone = rows[name].gather(np.array([local]))
        for array, values in zip(batch[:4], alone[:4], strict=True):
            np.testing.assert_array_equal(array[i], values[0])
    # Tokens of text, not places in rows.
    fill = {name: r.manifest.tokens("train") / len(r) / 32 for name, r in rows.items()}
    taken = {name: said[f"data/epochs/{name}"] * len(rows[name]) for name in rows}
    for name in rows:
        assert said[f"data/tokens/{name}"] == pytest.approx(taken[name] * 32 * fill[name])


# ── Refusals ──────────────────────────────────────────────────────────────────────────────────────


def refuse(folder, match):
    with (
        pytest.raises(DataError, match=match),
        make_loader(folder, **OPTIONS, packing="best_fit") as loader,
    ):
        epoch_of(loader)


def test_missing_damaged_and_foreign_lengths_are_told_apart(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "copy")
    intact = (folder / LENGTHS).read_bytes()
    (folder / LENGTHS).write_bytes(intact[:-40] + bytes(40))
    refuse(folder, r"lengths\.npz is damaged .* run `gchat data lengths`")
    other = make(tmp_path / "other", seed=1)
    shutil.copy(other / LENGTHS, folder / LENGTHS)
    refuse(folder, r"belongs to other shards")
    (folder / LENGTHS).unlink()
    refuse(folder, r"lengths\.npz does not exist.*run `gchat data lengths`")
    with make_loader(folder, **OPTIONS) as loader:  # which `split` does not need
        next(loader)
    write_lengths(folder, load_manifest(folder))
    assert (folder / LENGTHS).read_bytes() == intact


def test_shards_that_make_other_rows_than_counted_are_refused(data, tmp_path, monkeypatch):
    folder = shutil.copytree(data, tmp_path / "copy")
    found = read_lengths(folder, load_manifest(folder))
    wrong = [one._replace(count=2 * one.count) for one in found]
    monkeypatch.setattr("gaia.data.rows.read_lengths", lambda *_: wrong)
    refuse(folder, r"shard .*arrayrecord makes \d+ rows, lengths\.npz says \d+")


def test_a_document_without_bos_is_refused(tmp_path):
    """The one before it would learn to predict its first token."""
    plain = [np.array([BOS, 1, 2]), np.array([5, 6, 7])] * 40
    write_lengths(tmp_path, write_shards(tmp_path, plain, plain[:1], INFO))
    refuse(tmp_path, "a document does not begin with BOS, id 299")


def test_only_training_rows_are_packed(data):
    with pytest.raises(ConfigError, match="split val cannot be packed"):
        TokenRows(data, "val", 32, packing="best_fit")

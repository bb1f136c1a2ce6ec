"""Lanes: the order of text that nobody counted, for any number of processes and after any stop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.data.chunks import Stream
from gaia.data.lanes import LaneOrder, LaneRows, lanes_of
from gaia.data.lengths import write_lengths
from gaia.data.loader import make_lane_loader, make_loader
from gaia.data.manifest import TokenizerInfo, load_manifest
from gaia.data.shards import read_shard, write_shards
from gaia.errors import DataError

T = 8
INFO = TokenizerInfo("test", "0" * 64, 1000, 1024, 0)


def stream(unit, documents=6, seed=0):
    """Documents of a unit; every token says which unit it came from."""
    rng = np.random.default_rng([seed, unit])
    lengths = rng.integers(2, 20, size=documents)
    parts = [np.concatenate([[0], rng.integers(1, 1000, size=n)]) for n in lengths]
    return Stream(np.concatenate(parts).astype(np.uint16), np.cumsum(lengths + 1) - lengths - 1)


def rows_of(units, counts=None, packing="split", read=stream):
    names = [f"unit {i}" for i in range(units)]
    return LaneRows("a text", names, read, seq_len=T, bos_id=0, counts=counts, packing=packing)


def batches(units, batch_size, steps, *, here=None, start=0, counts=None, packing="split"):
    rows = rows_of(units, counts, packing)
    with make_lane_loader(
        rows, batch_size=batch_size, seed=7, start_step=start, rows_here=here, prefetch=0
    ) as loader:
        return [next(loader) for _ in range(steps)]


@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_one_lane_is_the_order_of_shards_in_windows_of_one(tmp_path, packing):
    units = 5
    streams = [stream(unit) for unit in range(units)]
    documents = [d for s in streams for d in np.split(s.tokens_N, s.starts[1:])]
    write_shards(tmp_path, documents, documents[:1], INFO, window=1, shard_tokens=60)
    manifest = load_manifest(tmp_path)
    streams = [read_shard(tmp_path, shard, manifest) for shard in manifest.train]
    write_lengths(tmp_path, manifest)
    names = [str(i) for i in range(len(manifest.train))]
    rows = LaneRows("x", names, streams.__getitem__, seq_len=T, bos_id=0, packing=packing)
    with (
        make_lane_loader(rows, batch_size=3, seed=7, prefetch=0) as ours,
        make_loader(tmp_path, seq_len=T, batch_size=3, seed=7, packing=packing) as theirs,
    ):
        assert ours.order.lanes == 1
        for _ in range(3 * len(theirs.rows)):  # nine epochs
            for mine, expected in zip(next(ours), next(theirs), strict=True):
                assert (mine is None and expected is None) or (mine == expected).all()


@settings(deadline=None, max_examples=30)
@given(
    units=st.integers(1, 40),
    batch_size=st.integers(1, 24),
    processes=st.integers(1, 6),
    stop=st.integers(0, 12),
)
def test_any_processes_and_any_stop_give_the_same_batches(units, batch_size, processes, stop):
    whole = batches(units, batch_size, 14)
    shares = np.array_split(np.arange(batch_size), processes)
    for share in (s for s in shares if len(s)):
        for step, part in zip(
            range(stop, 14),
            batches(units, batch_size, 14 - stop, here=share, start=stop),
            strict=True,
        ):
            assert (part.inputs_BT == whole[step].inputs_BT[share]).all()
            assert (part.targets_BT == whole[step].targets_BT[share]).all()


@settings(deadline=None, max_examples=30)
@given(units=st.integers(1, 40), batch_size=st.sampled_from([1, 4, 6, 16, 64]))
def test_every_unit_comes_once_in_an_epoch_whole(units, batch_size):
    rows = rows_of(units)
    order = LaneOrder(rows, batch_size, seed=3)
    assert order.lanes == lanes_of(batch_size, units)
    assert batch_size % order.lanes == 0
    per_epoch = [[order.unit(e * units + i) for i in range(units)] for e in range(3)]
    assert all(sorted(epoch) == list(range(units)) for epoch in per_epoch)
    seen = {}
    for step in range(60):
        for row_id in order.row_ids(step * batch_size, batch_size).tolist():
            seen.setdefault(row_id >> 31, []).append(row_id & (2**31 - 1))
    for ordinal, taken in seen.items():
        assert len(set(taken)) == len(taken) <= rows.count(order.unit(ordinal))
    done = [o for o in seen if o + order.lanes in seen]  # a lane went on to its next unit
    for ordinal in done:
        assert len(seen[ordinal]) == rows.count(order.unit(ordinal))
    rows.close()


def test_counts_are_kept_and_a_torn_line_is_counted_again(tmp_path):
    file = tmp_path / "counts" / "rows.txt"
    first = batches(12, 4, 30, counts=file)
    read = []

    def noting(unit):
        read.append(unit)
        return stream(unit)

    def again():
        read.clear()
        rows = rows_of(12, file, read=noting)
        with make_lane_loader(rows, batch_size=4, seed=7, start_step=29, prefetch=0) as loader:
            assert (next(loader).inputs_BT == first[29].inputs_BT).all()

    again()
    assert len(set(read)) <= 8  # of four lanes the unit in use and the one ahead
    text = file.read_text()
    line = text.split("\n")[1]
    shorter = text.replace(line, f"{line.split()[0]} 1")  # of a number only the first digit
    for torn in (shorter, text[:-3], text[:-1], text + "\n9", "", "garbage\n\x00"):
        file.write_text(torn)
        again()
    assert batches(12, 4, 30, counts=file)[29].inputs_BT.tolist() == first[29].inputs_BT.tolist()


def test_text_that_changes_under_a_run_is_noticed(tmp_path):
    file = tmp_path / "rows.txt"
    batches(3, 1, 5, counts=file)
    rows = rows_of(3, file, read=lambda unit: stream(unit, documents=40))
    with (
        make_lane_loader(rows, batch_size=1, seed=7, prefetch=0) as loader,
        pytest.raises(DataError, match=r"unit \d of a text makes \d+ rows, and made \d+ before"),
    ):
        next(loader)


def test_a_text_without_a_row_is_refused():
    rows = rows_of(3, read=lambda unit: Stream(np.array([0, 1], np.uint16), np.array([0])))
    with (
        make_lane_loader(rows, batch_size=2, seed=7, prefetch=0) as loader,
        pytest.raises(DataError, match=r"a text has no row of seq_len = 8"),
    ):
        next(loader)


def test_units_without_documents_are_passed_over():
    empty = Stream(np.empty(0, np.uint16), np.empty(0, np.int64))
    for packing in ("split", "best_fit"):
        rows = rows_of(4, packing=packing, read=lambda unit: stream(unit) if unit == 2 else empty)
        with make_lane_loader(rows, batch_size=4, seed=7, prefetch=0) as loader:
            for _ in range(20):
                assert next(loader).inputs_BT.shape == (4, T)
            assert loader.locate(int(loader.row_ids(3)[0]))[0] == "unit 2"

"""Mixtures: each source's share is exact, and the order is as pure as that of one data set."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.data.loader import make_loader
from gaia.data.manifest import TokenizerInfo
from gaia.data.order import BatchOrder, MixtureOrder
from gaia.data.shards import write_shards
from gaia.errors import ConfigError, DataError

INFO = TokenizerInfo("bpe", "0" * 64, vocab_size=300, padded_vocab_size=384, bos_id=299)
OPTIONS = {"seq_len": 16, "batch_size": 8, "seed": 3}
WEIGHTS = {"web": 0.7, "code": 0.2, "speeches": 0.1}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three data sets of different sizes whose tokens say where they are from."""
    found = {}
    for i, (name, count) in enumerate({"web": 150, "code": 60, "speeches": 8}.items()):
        folder = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(i)
        texts = [np.append(299, rng.integers(90 * i, 90 * i + 90, 60)) for _ in range(count)]
        write_shards(folder, texts, texts[:1], INFO, shard_tokens=700, window=2)
        found[name] = str(folder)
    return found


def order(sizes, weights, seed=0):
    orders = {name: BatchOrder([n], 1, seed + i) for i, (name, n) in enumerate(sizes.items())}
    return MixtureOrder(orders, weights, seed)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=4), st.integers(0, 200_000), st.integers(0, 9)
)
def test_every_block_has_exactly_its_shares(shares, start, seed):
    names = [f"s{i}" for i in range(len(shares))]
    mix = order(dict.fromkeys(names, 50), dict(zip(names, shares, strict=True)), seed)
    within = mix.taken(start + 65_536) - mix.taken(start)
    exact = np.array(shares) / sum(shares) * 65_536
    assert within.sum() == 65_536
    if start % 65_536 == 0:
        assert np.abs(within - exact).max() <= 1
    whole = mix.taken(10 * 65_536)
    assert np.abs(whole - 10 * exact).max() <= 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 140_000), st.integers(1, 300), st.integers(0, 5))
def test_a_position_has_one_row_however_it_is_asked_for(start, count, seed):
    sizes = {"a": 40, "b": 7}
    together = order(sizes, {"a": 3, "b": 1}, seed).row_ids(start, count)
    mix = order(sizes, {"a": 3, "b": 1}, seed)
    alone = [int(mix.row_ids(p, 1)[0]) for p in reversed(range(start, start + count))]
    assert together.tolist() == alone[::-1]


def test_each_source_is_gone_through_epoch_by_epoch():
    """Up-sampling: no row of a small source comes again before all of its rows came."""
    mix = order({"large": 10_000, "small": 10}, {"large": 0.9, "small": 0.1})
    ids = mix.row_ids(0, 5000)
    small = ids[ids >= 10_000] - 10_000
    assert len(small) == mix.taken(5000)[1] and len(small) > 300
    for first in range(0, len(small) - 10, 10):
        assert sorted(small[first : first + 10]) == list(range(10))
    large = ids[ids < 10_000]
    assert len(set(large.tolist())) == len(large)


def test_the_order_is_the_same_for_ever():
    """The order of a mixture must survive upgrades, as that of one data set must."""
    mix = order({"a": 5, "b": 3}, {"a": 0.6, "b": 0.4}, seed=7)
    assert mix.row_ids(65_530, 12).tolist() == [4, 2, 0, 5, 4, 6, 3, 2, 1, 5, 6, 2]


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_hold_the_rows_of_their_sources_on_any_number_of_hosts(sources, processes):
    with make_loader(sources, weights=WEIGHTS, **OPTIONS, prefetch=0) as loader:
        expected = [b.inputs_BT for b in itertools.islice(loader, 100)]
        ids = [loader.row_ids(step) for step in range(100)]
        figures = loader.metrics(100)
        offsets = loader.rows.offsets
    rows = np.concatenate(expected)
    source = np.searchsorted(offsets, np.concatenate(ids), side="right") - 1
    tokens = np.where(rows == 299, -1, rows // 90)
    assert ((tokens == source[:, None]) | (tokens == -1)).all()
    counts = np.bincount(source, minlength=3)
    for i, name in enumerate(sources):
        assert figures[f"data/tokens/{name}"] == counts[i] * 16
    assert abs(counts[0] / counts.sum() - 0.7) < 0.06
    assert figures["data/epochs/speeches"] > 2
    parts = []
    for index in range(processes):
        with make_loader(
            sources, weights=WEIGHTS, **OPTIONS, start_step=40,
            process_index=index, process_count=processes,
        ) as loader:  # fmt: skip
            parts.append([b.inputs_BT for b in itertools.islice(loader, 20)])
    for step, hosts in enumerate(zip(*parts, strict=True)):
        np.testing.assert_array_equal(np.concatenate(hosts), expected[40 + step])


def test_mistakes_are_named(sources, tmp_path):
    with pytest.raises(ConfigError, match=r"do not name the same sources \(code, speeches\)"):
        make_loader(sources, weights={"web": 1.0}, **OPTIONS)
    with pytest.raises(ConfigError, match=r"data\.weights code is 0"):
        make_loader(sources, weights=WEIGHTS | {"code": 0.0}, **OPTIONS)
    other = TokenizerInfo("bpe", "1" * 64, vocab_size=300, padded_vocab_size=384, bos_id=299)
    text = [np.append(299, np.arange(200))]
    write_shards(tmp_path, text, text, other)
    with pytest.raises(DataError, match="mixture odd has another tokenizer"):
        make_loader(
            {"web": sources["web"], "odd": str(tmp_path)}, weights={"web": 1, "odd": 1}, **OPTIONS
        )

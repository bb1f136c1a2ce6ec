"""Packing: each token once in a segment of its own document, and as full as Grain's packers."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.data import packing
from gaia.data.batch import IGNORE
from gaia.data.packing import Example, pack_examples
from gaia.errors import ConfigError

FITS = ("first_fit", "best_fit", "none")
BOS = 0


def one_by_one(lengths, seq_len, name):
    """Longest first, a piece at a time, as the textbook says."""
    free, rows = [], np.empty(len(lengths), int)
    for piece in np.argsort(-lengths, kind="stable"):
        fitting = [r for r, room in enumerate(free) if room >= lengths[piece]]
        if not fitting or name == "none":
            free.append(seq_len)
            row = len(free) - 1
        else:
            row = fitting[0] if name == "first_fit" else min(fitting, key=lambda r: free[r])
        free[row] -= lengths[piece]
        rows[piece] = row
    return rows, free


@settings(max_examples=200, deadline=None)
@given(seq_len=st.integers(1, 40), data=st.data(), name=st.sampled_from(FITS))
def test_placing_equal_pieces_at_once_is_placing_them_one_by_one(seq_len, data, name):
    lengths = np.array(data.draw(st.lists(st.integers(1, seq_len), max_size=60)), int)
    placed, rows = packing.place(lengths, seq_len, name)
    expected, free = one_by_one(lengths, seq_len, name)
    assert rows == len(free)
    if name == "first_fit":
        np.testing.assert_array_equal(placed, expected)
    # Which of equally full rows best-fit takes is nobody's business; how full they are is.
    filled = np.bincount(placed, lengths, minlength=rows)
    assert sorted(filled) == sorted(seq_len - room for room in free)


def documents_of(lengths):
    """Each token's id tells where it stands: 1000 * document + place; the first is BOS."""
    found = [1000 * (i + 1) + np.arange(n) for i, n in enumerate(lengths)]
    for document in found:
        document[0] = BOS
    return found


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=20),
    seq_len=st.integers(1, 40),
    name=st.sampled_from(FITS),
)
def test_each_token_once_with_its_own_target(lengths, seq_len, name):
    stream = np.concatenate([*documents_of(lengths), [BOS]])
    starts = np.cumsum(lengths) - lengths
    plan = packing.plan(starts, len(stream) - 1, seq_len, name)
    unique, counts = np.unique(lengths, return_counts=True)
    assert packing.count_rows(unique, counts, seq_len, name) == len(plan)
    # The rows in any order, one of them twice.
    order = np.random.default_rng(0).permutation(len(plan))
    rows = plan.gather(np.append(order, order[:1]), stream[:-1], stream[1:])
    *rows, weights, more = rows
    assert weights is None and more is None
    assert all(array.shape == (len(plan) + 1, seq_len) for array in rows)
    assert all(array.dtype == np.int32 for array in rows)
    assert all((array[0] == array[-1]).all() for array in rows)
    pieces = []
    for inputs, targets, positions, segments in zip(*(a[:-1] for a in rows), strict=True):
        used = segments > 0
        assert (inputs[~used] == 0).all() and (targets[~used] == IGNORE).all()
        assert used[: used.sum()].all()  # padding comes last
        assert (np.diff(segments[used]) >= 0).all()
        assert set(segments[used]) == set(range(1, segments.max() + 1))
        assert name != "none" or segments.max() == 1
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
            pieces.append((inputs[here].tolist(), targets[here].tolist()))
    expected = []
    for document in documents_of(lengths):
        after = [*document[1:].tolist(), BOS]  # the end of a document is the next one's BOS
        for at in range(0, len(document), seq_len):
            cut = slice(at, at + seq_len)
            expected.append((document[cut].tolist(), after[cut]))
    assert sorted(pieces) == sorted(expected)


def test_plans_are_those_of_this_version():
    """Another plan for the same documents needs another VERSION, or runs go on with other rows."""
    lengths = np.arange(500) * 7919 % 89 + 1
    starts, digest = np.cumsum(lengths) - lengths, hashlib.sha256()
    for name in FITS:
        plan = packing.plan(starts, int(lengths.sum()), 64, name)
        for array in (plan.start_P, plan.length_P, plan.first_R):
            digest.update(array.astype("<i8").tobytes())
    assert (packing.VERSION, digest.hexdigest()[:16]) == (1, "451c2d9c739a1173")


def grains(lengths, seq_len, packer, bins):
    """Rows that one of Grain's packers makes of these documents."""
    import grain

    source = grain.MapDataset.source([{"x": np.full(n, i)} for i, n in enumerate(lengths, 1)])
    found = packer(source.to_iter_dataset(), length_struct={"x": seq_len}, num_packing_bins=bins)
    return [row["x"] for row in found]


@pytest.mark.parametrize("name", ["first_fit", "best_fit"])
def test_fill_is_at_least_that_of_grains_packers(name):
    """They see the documents once, in order, and this one all of them, longest first."""
    from grain import experimental

    packer = {
        "first_fit": experimental.FirstFitPackIterDataset,
        "best_fit": experimental.BestFitPackIterDataset,
    }[name]
    lengths = np.random.default_rng(1).lognormal(4, 1, 2000).astype(int) % 512 + 1
    theirs = grains(lengths, 512, packer, bins=64)
    assert sum((row > 0).sum() for row in theirs) == lengths.sum()
    _, rows = packing.place(lengths, 512, name)
    least = -(-lengths.sum() // 512)
    assert least <= rows <= len(theirs)
    assert rows <= 1.01 * least  # and nearly as few as there can be


# ── Chats ─────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 50), min_size=1, max_size=10),
    name=st.sampled_from(FITS),
    seed=st.integers(0, 99),
)
def test_a_token_is_learned_exactly_where_its_mask_holds(lengths, name, seed):
    rng = np.random.default_rng(seed)
    examples = [Example(d, rng.random(len(d)) < 0.5) for d in documents_of(lengths)]
    rows = pack_examples(examples, 32, name)
    learned = rows.targets_BT[rows.targets_BT != IGNORE].tolist()
    expected = np.concatenate([e.tokens[1:][e.loss_mask[1:]] for e in examples])
    assert sorted(learned) == sorted(expected.tolist())
    # What a target is predicted from is the token before it.
    where = rows.targets_BT != IGNORE
    document, place = np.divmod(rows.targets_BT[where], 1000)
    before = np.where(place == 1, BOS, 1000 * document + place - 1)
    np.testing.assert_array_equal(rows.inputs_BT[where], before)
    assert (rows.segments_BT > 0).sum() == sum(lengths) - len(lengths)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="example 1 has 3 tokens and a loss mask of 2"):
        pack_examples([Example(np.ones(2, int), np.ones(2, bool)),
                       Example(np.ones(3, int), np.ones(2, bool))], 8)  # fmt: skip
    with pytest.raises(ConfigError, match="packing is split"):
        pack_examples([], 8, "split")
    assert all(array.shape == (0, 8) for array in pack_examples([], 8)[:4])

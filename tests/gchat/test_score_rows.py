"""Rows for scoring: each pair once, no prompt in two windows, and windows that end."""

from itertools import count

import numpy as np

from gchat.score_rows import Packing

SEQ_LEN, BATCH = 128, 512


def prompts(number, choices=4, seed=0):
    """Prompts that share nothing, each with several ends."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        context = rng.integers(0, 1000, rng.integers(30, 90))
        for first in range(choices):
            yield context, np.array([1000 + first, *rng.integers(0, 1000, rng.integers(0, 5))])


def test_each_pair_lies_in_one_row_and_no_prompt_is_cut():
    pairs = list(prompts(200))
    packing = Packing(SEQ_LEN, 2000, batch_tokens=BATCH)
    windows = list(packing.windows(pairs))
    assert len(windows) > 3 and not any(window.empty for window in windows)
    seen, used = [], 0
    for rows in (rows for window in windows for rows in window.batches):
        (length,) = {row.length for row in rows}
        assert 0 < len(rows) <= packing.rows(length)
        for row in rows:
            sizes = [unit.size for unit in row.units]
            assert sum(sizes) <= length
            used += sum(sizes)
            seen += [request.number for unit in row.units for request in unit.requests]
    assert sorted(seen) == list(range(len(pairs)))
    # The context once, and the ends without their last tokens, which predict nothing.
    alone = sum(len(pairs[i][0]) for i in range(0, len(pairs), 4))
    assert used == alone + sum(len(end) - 1 for _, end in pairs)


def test_a_window_ends_even_where_all_pairs_share_something():
    context, taken = np.arange(60), 0

    def endless():
        nonlocal taken
        for i in count():
            taken += 1
            assert taken < 2000
            yield context, [i % 500]

    windows = Packing(SEQ_LEN, 2000, batch_tokens=BATCH).windows(endless())
    assert next(windows).batches
    windows.close()


def test_pairs_without_tokens_are_numbered():
    pairs = [([1], []), ([1, 2], [3]), ([1], []), ([1], [2]), ([4, 5], [])]
    packing = Packing(SEQ_LEN, 10)
    (window,) = packing.windows(pairs)
    assert window.empty == [0, 2, 4]
    (none,) = packing.windows([])
    assert none.batches == [] and none.empty == []

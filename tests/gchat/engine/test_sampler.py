"""The sampler against plain NumPy: what is kept, how often each id comes, log-probabilities."""

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from gchat.engine.sampler import Knobs, choose

V, B = 300, 2048  # not a multiple of the columns; every test shares one compiled program
run = jax.jit(choose)


def knobs(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0, logprobs=False, seed=0):
    def each(value, dtype):
        return np.full(B, value, dtype)

    return Knobs(
        each(temperature, np.float32),
        each(top_k, np.int32),
        each(top_p, np.float32),
        each(min_p, np.float32),
        each(penalty, np.float32),
        each(logprobs, bool),
        np.stack([np.full(B, seed), np.arange(B)], 1).astype(np.uint32),
        each(False, bool),
        np.zeros((B, -(-V // 32)), np.uint32),
    )


def drawn(logits_V, given_knobs, seen_V=None, position=5):
    """B draws from one row of logits; row b has its own key."""
    logits_BV = np.broadcast_to(np.asarray(logits_V, np.float32), (B, V))
    seen_BV = np.broadcast_to(np.zeros(V, bool) if seen_V is None else seen_V, (B, V))
    return run(logits_BV, given_knobs, seen_BV, np.full(B, position, np.int32))


def kept(logits_V, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after the cuts, by sorting; None where a cut is within rounding of a value."""
    x = np.asarray(logits_V, np.float64) / temperature
    keep = np.isfinite(x)
    if top_k:
        keep &= x >= np.sort(x)[::-1][min(top_k, V) - 1]
    if top_p < 1:
        order = np.sort(x[keep])[::-1]
        mass = np.exp(order - order[0])
        share = np.cumsum(mass) / mass.sum()
        if np.any(np.abs(share - top_p) < 1e-5):
            return None
        keep &= x >= order[np.searchsorted(share, top_p)]
    if min_p:
        floor = x.max() + np.log(min_p)
        if np.any(np.abs(x - floor) < 1e-5 * max(1, abs(floor))) and min_p < 1:
            return None
        keep &= x >= min(floor, x.max())
    p = np.where(keep, np.exp(x - x.max()), 0.0)
    return p / p.sum()


def logits(seed, scale=2.0):
    x = (scale * np.random.default_rng(seed).standard_normal(V)).astype(np.float32)
    x[-7:] = -np.inf  # vocabulary padding
    return x


CUTS = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 20},
    "top_k beyond the groups": {"top_k": 90},
    "top_p": {"top_p": 0.8},
    "top_k then top_p": {"top_k": 30, "top_p": 0.7, "temperature": 0.9},
    "min_p": {"min_p": 0.05},
    "all": {"top_k": 40, "top_p": 0.9, "min_p": 0.03, "temperature": 1.3},
}


@pytest.mark.parametrize(
    "cut",
    [
        name if name in ("plain", "top_k", "all") else pytest.param(name, marks=pytest.mark.slow)
        for name in CUTS
    ],
)
def test_frequencies_are_those_of_the_cut_softmax(cut):
    x = logits(3)
    p = kept(x, **CUTS[cut])
    assert p is not None
    counts = np.zeros(V)
    for seed in range(10):
        tokens = np.asarray(drawn(x, knobs(**CUTS[cut], seed=seed)).token_B)
        counts += np.bincount(tokens, minlength=V)
    assert counts[p == 0].sum() == 0
    expected = p * counts.sum()
    rare = expected < 8  # chi-square wants no small cells: taken together
    cells = np.append(counts[~rare], counts[rare].sum())
    sums = np.append(expected[~rare], expected[rare].sum())
    cells, sums = cells[sums > 0], sums[sums > 0]
    assert stats.chisquare(cells, sums).pvalue > 1e-4


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 10.0, 1e4]),
    ties=st.booleans(),
    temperature=st.floats(0.05, 10),
    top_k=st.sampled_from([0, 1, 2, 50, 64, 65, 200, 2**31 - 1]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 1.0]),
)
@example(
    seed=0, scale=10.0, ties=True, temperature=10.0, top_k=64, top_p=0.5, min_p=0.0
)  # equals of the 64th value beyond those that were looked at
def test_only_kept_ids_are_drawn_whatever_the_logits(
    seed, scale, ties, temperature, top_k, top_p, min_p
):
    x = logits(seed, scale)
    x = np.where(np.isfinite(x), np.round(x), x) if ties else x
    # Divided as the sampler does it, so that equal values stay equal.
    p = kept(x / np.float32(temperature), 1.0, top_k, top_p, min_p)
    if p is None:
        return
    choice = drawn(x, knobs(np.float32(temperature), top_k, top_p, min_p, seed=seed % 97))
    tokens = np.asarray(choice.token_B)
    assert not np.any(p[tokens] == 0)
    # What is common enough not to be missed by B draws is not missed.
    assert set(np.flatnonzero(p * B > 40)) <= set(tokens.tolist())


def kept_of_a_large_vocabulary(x_V, **cuts):
    """The ids that 2,048 draws give, with groups of 32 ids (V=300 has groups of one)."""
    draws = 2048
    one = knobs(**cuts)
    given_knobs = Knobs(*(
        np.resize(field, (draws, *field.shape[1:])) for field in one if field is not None
    ))._replace(
        key_B2=np.stack([np.full(draws, 1), np.arange(draws)], 1).astype(np.uint32),
        mask_BW=np.zeros((draws, len(x_V) // 32), np.uint32),
    )  # fmt: skip
    logits_BV = np.broadcast_to(x_V, (draws, len(x_V)))
    choice = run(logits_BV, given_knobs, np.zeros_like(logits_BV, bool), np.zeros(draws, np.int32))
    return set(np.asarray(choice.token_B).tolist())


def test_equals_of_the_kth_value_count_wherever_they_are():
    """128 equal values in as many groups, of which 64 are looked at: all have a share of top-p."""
    x = np.full(8192, -1e4, np.float32)
    x[:128] = 0.0
    x[128] = np.log(50.0)
    # Of 178 parts the best has 50: not half. So its equals are needed, and stay together.
    assert kept_of_a_large_vocabulary(x, top_k=64, top_p=0.4) == set(range(129))
    assert kept_of_a_large_vocabulary(x, top_k=64, top_p=0.25) == {128}


def test_a_value_just_below_the_kth_is_cut_though_its_group_is_not_looked_at():
    x = np.full(8192, -1e4, np.float32)
    x[:64] = np.linspace(1.1, 2.3, 64)  # the best of 64 groups; what else these hold is far below
    x[64] = 1.0999
    assert kept_of_a_large_vocabulary(x, top_k=64) == set(range(64))


def test_greedy_takes_the_first_of_the_highest_and_ignores_the_cuts():
    x = logits(1)
    x[[40, 7, 250]] = x.max() + 1
    given_knobs = knobs(0.0, top_k=5, top_p=0.1, min_p=0.5)
    assert set(np.asarray(drawn(x, given_knobs).token_B).tolist()) == {7}


def test_a_row_depends_on_its_own_logits_options_and_key_alone():
    rng = np.random.default_rng(0)
    logits_BV = (3 * rng.standard_normal((B, V))).astype(np.float32)
    k = knobs()._replace(
        temperature_B=rng.choice([0.0, 0.7, 1.0], B).astype(np.float32),
        top_k_B=rng.choice([0, 3, 50, 90], B).astype(np.int32),
        top_p_B=rng.choice([1.0, 0.9], B).astype(np.float32),
        min_p_B=rng.choice([0.0, 0.1], B).astype(np.float32),
    )
    seen_BV, position_B = np.zeros((B, V), bool), rng.integers(0, 99, B).astype(np.int32)
    together = run(logits_BV, k, seen_BV, position_B)
    order = rng.permutation(B)
    shuffled = run(
        logits_BV[order], jax.tree.map(lambda a: a[order], k), seen_BV, position_B[order]
    )
    for a, b in zip(together[:2], shuffled[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(a)[order], np.asarray(b))
    for group in np.array_split(np.arange(B), 4):  # beside greedy rows instead of these
        alone = k._replace(temperature_B=np.zeros(B, np.float32))
        alone.temperature_B[group] = k.temperature_B[group]
        np.testing.assert_array_equal(
            np.asarray(run(logits_BV, alone, seen_BV, position_B).token_B)[group],
            np.asarray(together.token_B)[group],
        )


def test_log_probabilities_are_those_before_the_cuts_and_after_penalty_and_temperature():
    x, seen = logits(5), np.zeros(V, bool)
    seen[np.argsort(-x)[:30:2]] = True
    given_knobs = knobs(0.6, top_k=10, top_p=0.5, penalty=1.3, logprobs=True)
    choice = drawn(x, given_knobs, seen)
    y = np.where(seen, np.where(x > 0, x / 1.3, x * 1.3), x).astype(np.float64) / 0.6
    expected = y - np.log(np.exp(y[np.isfinite(y)]).sum())
    tokens = np.asarray(choice.token_B)
    np.testing.assert_allclose(np.asarray(choice.logprob_B), expected[tokens], atol=1e-5)
    order = np.argsort(-expected, kind="stable")[: choice.top_BN.shape[1]]
    np.testing.assert_array_equal(np.asarray(choice.top_BN)[0], order)
    np.testing.assert_allclose(np.asarray(choice.top_logprob_BN)[0], expected[order], atol=1e-5)
    assert not np.any(kept(y.astype(np.float32), 1.0, 10, 0.5)[tokens] == 0)
    greedy = drawn(x, knobs(0.0), seen)  # log-probabilities at temperature 1
    plain = x.astype(np.float64) - np.log(np.exp(x[np.isfinite(x)].astype(np.float64)).sum())
    np.testing.assert_allclose(np.asarray(greedy.logprob_B)[0], plain.max(), atol=1e-5)


def test_masks_cut_before_the_other_cuts_and_leave_log_probabilities():
    x = logits(6)
    allowed = np.zeros(V, bool)
    allowed[[0, 31, 32, 63, 200]] = True
    words = np.packbits(np.pad(allowed, (0, -V % 32)), bitorder="little").view(np.uint32)
    masked_B = np.arange(B) % 2 == 0
    given_knobs = knobs(top_k=3)._replace(
        masked_B=masked_B, mask_BW=np.where(masked_B[:, None], words, 0).astype(np.uint32)
    )
    choice = drawn(x, given_knobs)
    tokens = np.asarray(choice.token_B)
    best = {i for i in np.flatnonzero(allowed) if (x[allowed] > x[i]).sum() < 3}
    assert set(tokens[masked_B].tolist()) == best
    assert set(tokens[~masked_B].tolist()) == set(np.argsort(-x)[:3].tolist())
    plain = x - np.log(np.exp(x[np.isfinite(x)].astype(np.float64)).sum())
    np.testing.assert_allclose(np.asarray(choice.logprob_B), plain[tokens], atol=1e-5)

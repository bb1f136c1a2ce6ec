"""The paired interval: its false alarms, its power, and its agreement with scipy's own test."""

import numpy as np
import pytest
from scipy import stats

from gaia.errors import ConfigError
from gchat.research.statistics import paired, pairs_needed, power


def simulated(count, pairs, effect, seed):
    """Comparisons that find a difference, of `count` with `effect` seed deviations between them."""
    draws = np.random.default_rng(seed).standard_normal((count, 2, pairs))
    return sum(paired(one, other + effect).differs for one, other in draws)


def test_false_alarms_are_as_many_as_stated():
    alarms = simulated(1000, 3, 0.0, seed=1)
    low, high = stats.binom.interval(0.99, 1000, 0.05)
    assert low <= alarms <= high


def test_an_effect_of_two_seed_deviations_is_found():
    pairs = pairs_needed(2.0)
    assert pairs == 7
    assert simulated(1000, pairs, 2.0, seed=2) >= 800
    assert power(2.0, pairs) >= 0.8 > power(2.0, pairs - 1)


def test_power_is_what_simulation_gives():
    share = simulated(4000, 4, 1.5, seed=3) / 4000
    assert share == pytest.approx(power(1.5, 4), abs=0.03)


def test_the_interval_is_scipy_s():
    one, other = np.random.default_rng(0).standard_normal((2, 7))
    ours, theirs = paired(one, other, 0.9), stats.ttest_rel(other, one).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.degrees == 6
    assert "6 degrees of freedom" in str(ours)


def test_pairing_takes_the_seeds_out():
    seeds = np.array([0.0, 10.0, -10.0])
    assert paired(seeds, [0.1, 10.11, -9.91]).differs


def test_too_few_values_are_refused():
    for one, other in (([1.0], [2.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ConfigError, match="are compared"):
            paired(one, other)

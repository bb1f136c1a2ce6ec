"""Differences of two variants and how sure they are: a paired t-interval over seeds.

Both variants train with the same seeds, so the same initial keys and the same order of batches;
what a seed does to both leaves the difference. With k seeds the interval has k - 1 degrees of
freedom, which is said: two seeds give an interval eleven times as wide as many would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gaia.errors import ConfigError

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference (second minus first) with its interval."""

    mean: float
    low: float
    high: float
    level: float
    pairs: int
    deviation: float
    """Standard deviation of the differences."""

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the interval."""
        return self.pairs - 1

    @property
    def differs(self) -> bool:
        """Tells whether the interval excludes 0."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        return (
            f"{self.mean:+.4f} ± {half:.4f} ({100 * self.level:g}% t-interval, "
            f"{self.pairs} pairs, {self.degrees} degrees of freedom)"
        )


def paired(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Difference:
    """The difference of paired values.

    Args:
        first: one value per seed.
        second: the other variant's, in the same order.
        level: share of such intervals that cover the true difference.

    Raises:
        ConfigError: the numbers of values differ, or there is only one pair.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ConfigError(
            f"{len(first)} and {len(second)} values are compared", "give two seeds or more to both"
        )
    differences = np.asarray(second, float) - np.asarray(first, float)
    n, mean = len(differences), float(differences.mean())
    deviation = float(differences.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, level, n, deviation)


def power(effect: float, pairs: int, level: float = LEVEL) -> float:
    """Probability that `paired` finds a difference of `effect` seed deviations.

    The seed deviation is one variant's; independent seeds would make the difference vary by the
    square root of two of it, and pairing can only help.
    """
    critical = float(stats.t.ppf((1 + level) / 2, pairs - 1))
    shift = effect * math.sqrt(pairs / 2)
    inside = stats.nct.cdf(critical, pairs - 1, shift) - stats.nct.cdf(-critical, pairs - 1, shift)
    return float(1 - inside)


def pairs_needed(effect: float, wanted: float = 0.8, level: float = LEVEL) -> int:
    """Fewest pairs with which `power` reaches `wanted`."""
    return next(n for n in range(2, 1000) if power(effect, n, level) >= wanted)

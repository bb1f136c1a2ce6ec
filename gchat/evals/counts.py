"""Right answers of how many, with their intervals of 95%.

- accuracy: Wilson's score interval (1927), which holds for few items, and for 0 or all right;
- mean of centred accuracies: normal, with the variance of each from Agresti and Coull's estimate
  (1998, two right and two wrong answers more), tasks taken as independent.

They say how far a score could be moved by other items of the same kind, not by another training
run.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

Z = 1.959964
"""Quantile of the normal distribution for 95%."""


class Interval(NamedTuple):
    """Ends of an interval of 95%."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4f} {self.high:.4f}"


class Count(NamedTuple):
    """Answers to a task."""

    right: float
    """Sum of the grades; whole where each answer is right or wrong."""
    of: int

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return self.right / self.of

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the accuracy."""
        n, z2 = self.of, Z * Z
        middle = (self.right + z2 / 2) / (n + z2)
        half = Z / (n + z2) * math.sqrt(self.right * (n - self.right) / n + z2 / 4)
        return Interval(max(0.0, middle - half), min(1.0, middle + half))

    @property
    def variance(self) -> float:
        """Variance of the accuracy, positive also where all answers are right or wrong."""
        n = self.of + Z * Z
        share = (self.right + Z * Z / 2) / n
        return share * (1 - share) / n


def mean_interval(counts: Iterable[tuple[Count, float]], middle: float) -> Interval:
    """Interval of a mean of centred accuracies.

    Args:
        counts: each with its baseline.
        middle: the mean.
    """
    variances = [count.variance / (1 - baseline) ** 2 for count, baseline in counts]
    half = Z * math.sqrt(sum(variances)) / len(variances)
    return Interval(middle - half, middle + half)

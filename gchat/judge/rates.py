"""The pass rate behind a judge that errs: Rogan and Gladen's correction, and its interval.

A judge with sensitivity Se (right answers that pass) and specificity Sp (wrong ones that fail)
passes p = t Se + (1 - t)(1 - Sp) of answers of which t are right, so
t = (p + Sp - 1) / (Se + Sp - 1) (Rogan and Gladen 1978). Se and Sp are themselves counted on few
planted answers. The interval is Fieller's: every t for which p - t Se - (1 - t)(1 - Sp) is within
1.96 of its own deviations of 0, with Agresti and Coull's share and variance of p, and one success
and one failure more for the calibration, as Lang and Reiczigel 2014 take them. Unlike the delta
method it never divides by Se + Sp - 1, so it stays honest for weak judges.
tests/benchmarks/judge_intervals.py compares eight methods.
"""

import math
from dataclasses import dataclass

from gchat.evals.counts import Count, Interval, Z


@dataclass(frozen=True)
class Calibration:
    """Verdicts on planted answers."""

    right: Count
    """Right answers that passed, of all right ones."""
    wrong: Count
    """Wrong answers that failed, of all wrong ones."""

    @property
    def sensitivity(self) -> float:
        """Share of right answers that passed."""
        return self.right.accuracy

    @property
    def specificity(self) -> float:
        """Share of wrong answers that failed."""
        return self.wrong.accuracy

    @property
    def youden(self) -> float:
        """Sensitivity + specificity - 1: 1 for a perfect judge, 0 for a coin."""
        return self.sensitivity + self.specificity - 1

    @property
    def youden_interval(self) -> Interval:
        """95% interval of a sum of two shares, from Wilson's of each (Newcombe 1998, method 10)."""
        low, high = self.right.interval, self.wrong.interval
        below = math.hypot(self.sensitivity - low.low, self.specificity - high.low)
        above = math.hypot(low.high - self.sensitivity, high.high - self.specificity)
        return Interval(self.youden - below, self.youden + above)

    @property
    def discriminates(self) -> bool:
        """Tells whether right answers surely pass more often than wrong ones."""
        return self.youden_interval.low > 0


@dataclass(frozen=True)
class Corrected:
    """A corrected pass rate."""

    rate: float
    """Share of right answers, within 0 and 1."""
    interval: Interval
    outside: bool
    """The judge passed more or fewer answers than its calibration can explain."""


def corrected(passed: Count, calibration: Calibration) -> Corrected:
    """The share of right answers behind the share that passed.

    Args:
        passed: answers that passed, of all that got a verdict.
        calibration: of the same judge; it must discriminate.
    """
    raw = (passed.accuracy + calibration.specificity - 1) / calibration.youden
    interval = _interval(passed, calibration)
    clipped = Interval(*(min(1.0, max(0.0, end)) for end in interval))
    outside = interval.low > 1 or interval.high < 0
    return Corrected(min(1.0, max(0.0, raw)), clipped, outside)


def _interval(passed: Count, calibration: Calibration) -> Interval:
    """Ends before they are clipped to 0 and 1: the roots of a quadratic in t."""
    n = passed.of + Z * Z
    p = (passed.right + Z * Z / 2) / n
    (se, var_se), (sp, var_sp) = (_smoothed(c) for c in (calibration.right, calibration.wrong))
    # (a + b t)^2 <= Z^2 (var_p + t^2 var_se + (1 - t)^2 var_sp)
    a, b, var_p = p - (1 - sp), 1 - se - sp, p * (1 - p) / n
    square = b * b - Z * Z * (var_se + var_sp)
    half = a * b + Z * Z * var_sp
    rest = a * a - Z * Z * (var_p + var_sp)
    if square <= 0:  # the calibration excludes nothing
        return Interval(0.0, 1.0)
    root = math.sqrt(max(0.0, half * half - square * rest))
    return Interval((-half - root) / square, (-half + root) / square)


def _smoothed(count: Count) -> tuple[float, float]:
    """A share and its variance, with one success and one failure more."""
    n = count.of + 2
    share = (count.right + 1) / n
    return share, share * (1 - share) / n

"""Intervals of a judge's corrected pass rate: eight methods on judges of known quality.

    PYTHONPATH=. python tests/benchmarks/judge_intervals.py [JUDGES]

For each simulated judge a truth in 0..1, a sensitivity and a specificity in 0.6..0.99, 50 to 500
answers and 30 to 200 planted ones of each kind are drawn; the methods see the counts alone. Judges
that `gchat judge` refuses are left out. Printed: the share of intervals that hold the truth, in all
and among rates near 0 or 1, weak judges and small calibrations, and the median width as a multiple
of the delta method's.
"""

import sys
from collections.abc import Callable

import numpy as np

from gchat.evals.counts import Count, Z
from gchat.judge.rates import Calibration, corrected

Interval = tuple[float, float]


def _parts(passed: Count, known: Calibration, more: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Shares of p, Se, Sp and their variances, with `more` successes and failures in Se and Sp."""
    p_n = passed.of + (Z * Z if more else 0)
    p = (passed.right + (Z * Z / 2 if more else 0)) / p_n
    n = np.array([p_n, known.right.of + 2 * more, known.wrong.of + 2 * more])
    share = np.array([p, (known.right.right + more) / n[1], (known.wrong.right + more) / n[2]])
    return share, share * (1 - share) / n


def _around(share: np.ndarray, variance: np.ndarray, shift: bool) -> Interval:
    p, se, sp = share
    j = se + sp - 1
    t = (p + sp - 1) / j
    half = Z * np.sqrt(variance[0] + t * t * variance[1] + (1 - t) ** 2 * variance[2]) / j
    move = 2 * Z * Z * (t * variance[1] - (1 - t) * variance[2]) if shift else 0.0
    return t + move - half, t + move + half


def delta(passed: Count, known: Calibration) -> Interval:
    """Rogan and Gladen 1978."""
    return _around(*_parts(passed, known), shift=False)


def lang_reiczigel(passed: Count, known: Calibration) -> Interval:
    """Lang and Reiczigel 2014."""
    return _around(*_parts(passed, known, more=1.0), shift=True)


def fieller(passed: Count, known: Calibration, more: float = 0.0) -> Interval:
    """Fieller 1954 with plain counts."""
    (p, se, sp), variance = _parts(passed, known, more)
    t = np.linspace(0, 1, 2001)
    distance = (p - t * se - (1 - t) * (1 - sp)) ** 2
    inside = distance <= Z * Z * (variance[0] + t**2 * variance[1] + (1 - t) ** 2 * variance[2])
    if not inside.any():
        nearest = float(t[np.argmin(distance)])
        return nearest, nearest
    return float(t[inside][0]), float(t[inside][-1])


def ours(passed: Count, known: Calibration) -> Interval:
    """The method of `gchat judge`."""
    return tuple(corrected(passed, known).interval)


def sampled(prior: float) -> Callable[[Count, Calibration], Interval]:
    """Quantiles of t with p, Se and Sp drawn from their posteriors."""
    draw = np.random.default_rng(1)

    def interval(passed: Count, known: Calibration) -> Interval:
        p, se, sp = (
            draw.beta(c.right + prior, c.of - c.right + prior, 4000)
            for c in (passed, known.right, known.wrong)
        )
        keep = se + sp > 1
        t = np.clip((p + sp - 1)[keep] / (se + sp - 1)[keep], 0, 1)
        return tuple(np.quantile(t, [0.025, 0.975]))

    return interval


def bayes(passed: Count, known: Calibration) -> Interval:
    """Posterior of t under a flat prior, Se and Sp integrated out."""
    draw = np.random.default_rng(2)
    se = draw.beta(known.right.right + 0.5, known.right.of - known.right.right + 0.5, 4000)
    sp = draw.beta(known.wrong.right + 0.5, known.wrong.of - known.wrong.right + 0.5, 4000)
    t = (draw.permutation(4000) + 0.5) / 4000
    p = np.clip(t * se + (1 - t) * (1 - sp), 1e-9, 1 - 1e-9)
    log = passed.right * np.log(p) + (passed.of - passed.right) * np.log(1 - p)
    order = np.argsort(t)
    mass = np.cumsum(np.exp(log - log.max())[order])
    ends = np.searchsorted(mass / mass[-1], [0.025, 0.975])
    return tuple(t[order][np.minimum(ends, 3999)])


def bootstrap(passed: Count, known: Calibration) -> Interval:
    """Percentiles of t over counts drawn again."""
    draw = np.random.default_rng(3)
    p, se, sp = (
        draw.binomial(c.of, c.accuracy, 2000) / c.of for c in (passed, known.right, known.wrong)
    )
    keep = se + sp > 1
    return tuple(np.quantile((p + sp - 1)[keep] / (se + sp - 1)[keep], [0.025, 0.975]))


METHODS = {
    "raw share, Wilson": lambda passed, known: tuple(passed.interval),
    "delta": delta,
    "Lang-Reiczigel": lang_reiczigel,
    "Fieller": fieller,
    "Fieller, smoothed (ours)": ours,
    "posteriors, Jeffreys": sampled(0.5),
    "posteriors, flat": sampled(1.0),
    "Bayes, flat": bayes,
    "bootstrap": bootstrap,
}


def main(judges: int) -> None:
    """Simulates and prints the table."""
    draw = np.random.default_rng(7)
    held: dict[str, list[bool]] = {name: [] for name in METHODS}
    widths: dict[str, list[float]] = {name: [] for name in METHODS}
    kinds, refused = [], 0
    for _ in range(judges):
        truth, se, sp = draw.uniform(0, 1), draw.uniform(0.6, 0.99), draw.uniform(0.6, 0.99)
        n, m = int(draw.integers(50, 501)), int(draw.integers(30, 201))
        passed = Count(draw.binomial(n, truth * se + (1 - truth) * (1 - sp)), n)
        known = Calibration(Count(draw.binomial(m, se), m), Count(draw.binomial(m, sp), m))
        if not known.discriminates:
            refused += 1
            continue
        kinds.append((truth < 0.1 or truth > 0.9, se + sp < 1.4, m < 60))
        for name, method in METHODS.items():
            low, high = np.clip(method(passed, known), 0, 1)
            held[name].append(bool(low - 1e-3 <= truth <= high + 1e-3))
            widths[name].append(float(high - low))
    edge, weak, few = np.array(kinds).T
    print(f"{judges} judges, {refused} refused\n")
    print("| method | holds the truth | t near 0, 1 | weak | few planted | width / delta's |")
    print("|---|---|---|---|---|---|")
    base = np.median(widths["delta"])
    for name in METHODS:
        hit = np.array(held[name])
        shares = " | ".join(f"{hit[some].mean():.3f}" for some in (edge, weak, few))
        width = np.median(widths[name]) / base
        print(f"| {name} | {hit.mean():.3f} | {shares} | {width:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)

"""The loss of models over their size and data: L = E + A / N^alpha + B / D^beta.

Fitted as Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.2) say and Besiroglu et al. 2024
(arXiv 2404.10102) correct: the Huber loss of log L, **summed** over the points. With its mean
L-BFGS stops far from the minimum, because its tolerance is absolute; that was the error of the
first paper. It is BFGS here, which finds the same minimum: for five numbers a limited memory saves
nothing, and SciPy's limited form starts LAPACK's threads in each of its steps. Starts: the best of
a grid of exponents, each solved for E, A, B by non-negative least squares (variable projection).
"""

from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize, nnls

from gaia.errors import ConfigError

HUBER_DELTA = 1e-3
"""Residual of log L from which it counts linearly, as in both papers."""
_STARTS = 4
_SCALE = HUBER_DELTA**-2
"""Brings the objective near 1, for its gradient is compared with an absolute tolerance."""


@dataclass(frozen=True)
class LossFit:
    """A fitted law; `b`, `beta` are 0 for the law of one axis, L = E + A / N^alpha."""

    e: float
    """Loss of endless models on endless data."""
    a: float
    alpha: float
    b: float = 0.0
    beta: float = 0.0
    objective: float = 0.0
    """Summed Huber loss at the minimum."""

    def predict(self, n: np.ndarray | float, d: np.ndarray | float = 1.0) -> np.ndarray:
        """Loss of models of `n` parameters on `d` tokens."""
        # By logarithms: bootstrap draws have factors and powers that no float holds alone.
        said = self.e + np.exp(np.log(self.a) - self.alpha * np.log(np.asarray(n, float)))
        if self.b:
            said = said + np.exp(np.log(self.b) - self.beta * np.log(np.asarray(d, float)))
        return said

    def best_split(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss at `flops` = 6 N D (Chinchilla's question).

        At least one of each, which a law with nearly flat axes would leave.
        """
        pairs = flops / 6
        odds = np.log(self.alpha * self.a) - np.log(self.beta * self.b)
        log_n = (odds + self.beta * np.log(pairs)) / (self.alpha + self.beta)
        n = float(np.exp(np.clip(log_n, 0.0, np.log(pairs))))
        return n, pairs / n


def fit(
    n: np.ndarray,
    d: np.ndarray | None,
    loss: np.ndarray,
    *,
    summed: bool = True,
    start: LossFit | None = None,
) -> LossFit:
    """Fits the law to measured losses.

    Args:
        n: parameters of each model [P].
        d: its training tokens [P]; None fits the law of one axis, for rungs whose tokens are a
            fixed multiple of their parameters.
        loss: its final loss [P], in nats or bits per byte.
        summed: False averages the Huber losses instead, at L-BFGS's own tolerance, as the first
            paper did; only to show what that does.
        start: begin at this law instead of at the best of the grid.

    Raises:
        ConfigError: fewer points than parameters, or a value that is not above 0.
    """
    axes = [np.asarray(n, float), *([] if d is None else [np.asarray(d, float)])]
    loss = np.asarray(loss, float)
    needed = 3 if d is None else 5
    if len(loss) < needed:
        raise ConfigError(f"{len(loss)} points are given", f"the law needs at least {needed}")
    for values in (*axes, loss):
        if values.shape != loss.shape or not (values > 0).all() or not np.isfinite(values).all():
            raise ConfigError(
                "a size, token count or loss is not above 0", "leave out runs that diverged"
            )
    logs_AP = np.log(np.stack(axes))
    scale = _SCALE if summed else 1 / len(loss)
    objective = partial(_objective, logs_AP=logs_AP, log_loss_P=np.log(loss), scale=scale)
    method = {"method": "BFGS", "options": {"maxiter": 5000, "gtol": 1e-7}}
    results = [
        minimize(objective, begin, jac=True, **(method if summed else {"method": "L-BFGS-B"}))
        for begin in (_starts(logs_AP, loss) if start is None else [_vector(start, len(axes))])
    ]
    best = min(results, key=lambda r: r.fun)
    logs, exponents = best.x[: len(axes)], best.x[len(axes) + 1 :]
    a, b = (*np.exp(logs), 0.0)[:2]
    alpha, beta = (*exponents, 0.0)[:2]
    return LossFit(
        float(np.exp(best.x[len(axes)])),
        float(a),
        float(alpha),
        float(b),
        float(beta),
        best.fun / scale,
    )


def bootstrap(
    n: np.ndarray, d: np.ndarray | None, loss: np.ndarray, *, samples: int = 200, seed: int = 0
) -> list[LossFit]:
    """Fits of resampled points, for intervals of what is computed from a fit.

    Points are drawn with replacement; a draw with too few different sizes for the law is drawn
    again.
    """
    n, loss = np.asarray(n, float), np.asarray(loss, float)
    d = None if d is None else np.asarray(d, float)
    generator = np.random.default_rng(seed)
    whole = fit(n, d, loss)
    needed = 3 if d is None else 5
    fits: list[LossFit] = []
    while len(fits) < samples:
        drawn = generator.integers(0, len(loss), len(loss))
        if len(np.unique(n[drawn])) < min(needed, len(np.unique(n))):
            continue
        drawn_d = None if d is None else d[drawn]
        fits.append(fit(n[drawn], drawn_d, loss[drawn], start=whole))
    return fits


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Central interval of bootstrap values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _objective(
    p: np.ndarray, *, logs_AP: np.ndarray, log_loss_P: np.ndarray, scale: float
) -> tuple[float, np.ndarray]:
    """Huber loss and its gradient in (log a per axis, log e, exponent per axis)."""
    axes = len(logs_AP)
    terms = [p[i] - p[axes + 1 + i] * logs_AP[i] for i in range(axes)]
    z = np.stack([*terms, np.full_like(log_loss_P, p[axes])])
    top = z.max(0)
    predicted = top + np.log(np.exp(z - top).sum(0))
    weights = np.exp(z - predicted)
    r = log_loss_P - predicted
    small = np.abs(r) <= HUBER_DELTA
    huber = np.where(small, 0.5 * r * r, HUBER_DELTA * (np.abs(r) - 0.5 * HUBER_DELTA))
    slope = -np.clip(r, -HUBER_DELTA, HUBER_DELTA)
    gradient = [*(weights * slope).sum(1), *(-(weights[:axes] * logs_AP) * slope).sum(1)]
    return float(huber.sum() * scale), np.array(gradient) * scale


def _vector(law: LossFit, axes: int) -> np.ndarray:
    logs = np.log([*(law.a, law.b)[:axes], law.e])
    return np.array([*logs, *(law.alpha, law.beta)[:axes]])


def _starts(logs_AP: np.ndarray, loss: np.ndarray) -> list[np.ndarray]:
    """The best few of a grid of exponents, each with its least-squares E, A, B."""
    exponents = np.linspace(0.05, 1.0, 20)
    grid = np.stack(np.meshgrid(*[exponents] * len(logs_AP)), -1).reshape(-1, len(logs_AP))
    weight = 1 / loss  # relative errors, as those of log L
    scored: list[tuple[float, np.ndarray]] = []
    for powers in grid:
        # Scaled to their largest value, so that no column vanishes beside the constant.
        raw = [-power * log for power, log in zip(powers, logs_AP, strict=True)]
        tops = [column.max() for column in raw]
        columns = [np.exp(column - top) for column, top in zip(raw, tops, strict=True)]
        matrix = np.stack([*columns, np.ones_like(loss)], -1) * weight[:, None]
        solution, residual = nnls(matrix, loss * weight)
        logs = np.log(np.maximum(solution, 1e-8))
        logs[:-1] -= tops
        scored.append((residual, np.array([*logs, *powers])))
    scored.sort(key=lambda pair: pair[0])
    return [start for _, start in scored[:_STARTS]]


def as_dict(law: LossFit) -> dict[str, float]:
    """The law by the names of its letters."""
    return dict(zip(("E", "A", "alpha", "B", "beta", "objective"), astuple(law), strict=True))

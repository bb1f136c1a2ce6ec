"""Chinchilla's question: how to split a budget of FLOPs between parameters and training tokens.

Models of several sizes, each trained on several amounts of tokens, give the law of two axes
(`gchat.research.loss_fit`) and, from it, the parameters and tokens of the lowest loss at each
budget. Every figure has a bootstrap interval. Points come from `gchat ladder` or from a table.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import ConfigError
from gchat.research.loss_fit import LossFit, as_dict, bootstrap, fit, interval
from gchat.research.picture import save

COLUMNS = ("params", "tokens", "flops", "loss")
_DRAWS = 200
_FEWEST = 8
"""Points: fewer cannot be drawn anew in many ways, and an interval would be far too narrow."""
_BUDGETS = (1.0, 10.0, 100.0)
_SPREAD = 1.1
"""Largest to smallest ratio of tokens to parameters; tokens are whole steps, so that one ratio is
never exactly one."""
_FLAT = 0.01
"""Exponents and factors below this say that an axis does nothing."""
_FLOPS = 6.0
"""FLOPs of training per parameter and token, as in both papers; attention is left out."""


@dataclass(frozen=True)
class Points:
    """Trained models, one entry each."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    @property
    def flops(self) -> np.ndarray:
        """Training FLOPs of each, 6 N D."""
        return _FLOPS * self.params * self.tokens

    def kept(self, keep: np.ndarray) -> "Points":
        """The chosen ones."""
        return Points(self.params[keep], self.tokens[keep], self.loss[keep])


@dataclass(frozen=True)
class Split:
    """The best model of one budget, with intervals."""

    flops: float
    params: float
    params_interval: tuple[float, float]
    tokens: float
    loss: float
    loss_interval: tuple[float, float]


@dataclass(frozen=True)
class HeldOut:
    """A point that the law did not see, and what the law says of it."""

    params: float
    tokens: float
    measured: float
    said: float
    low: float
    high: float


@dataclass(frozen=True)
class Analysis:
    """The law of some points and what follows from it."""

    points: Points
    law: LossFit
    intervals: dict[str, tuple[float, float]]
    """Intervals of E, alpha and beta."""
    splits: list[Split]
    held_out: list[HeldOut]
    level: float


def read_points(path: Path, leave_out_worst: int = 0) -> Points:
    """Reads a table of trained models: columns `params`, `tokens` or `flops`, and `loss`.

    Args:
        path: of a CSV file with a header.
        leave_out_worst: highest losses to drop, as Besiroglu et al. drop five of Chinchilla's.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or a value is not a number above 0.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--points {path} cannot be read ({why})", "name a CSV file") from None
    if not rows:
        raise ConfigError(f"--points {path} holds no rows", f"give columns {', '.join(COLUMNS)}")
    amount = "tokens" if "tokens" in rows[0] else "flops"
    if missing := [name for name in ("params", amount, "loss") if name not in rows[0]]:
        raise ConfigError(
            f"--points {path} has no column {missing[0]!r}",
            "name the columns params, tokens (or flops) and loss",
        )
    params = _column(path, rows, "params")
    amounts, loss = _column(path, rows, amount), _column(path, rows, "loss")
    tokens = amounts if amount == "tokens" else amounts / _FLOPS / params
    if not 0 <= leave_out_worst < len(loss):
        raise ConfigError(
            f"--leave-out-worst is {leave_out_worst} of {len(loss)} points", "leave some to fit"
        )
    keep = np.sort(np.argsort(loss, kind="stable")[: len(loss) - leave_out_worst])
    return Points(params, tokens, loss).kept(keep)


def _column(path: Path, rows: Sequence[dict[str, str]], name: str) -> np.ndarray:
    values = np.zeros(len(rows))
    for number, row in enumerate(rows):
        try:
            values[number] = float(row[name])
        except (TypeError, ValueError):
            values[number] = np.nan
        if not 0 < values[number] < np.inf:
            raise ConfigError(
                f"--points {path}, line {number + 2}: {name} is {row[name]!r}",
                "write a number above 0, or leave the line out",
            )
    return values


def analyse(
    points: Points, held_out: Points | None = None, *, level: float = 0.95, draws: int = _DRAWS
) -> Analysis:
    """Fits the law of two axes, with bootstrap intervals, and asks it for the best splits.

    Args:
        points: models to fit; several sizes, of which some trained on several amounts.
        held_out: models to predict.
        level: of the intervals.
        draws: of the bootstrap.

    Raises:
        ConfigError: fewer points than the law has numbers, or only one size or one ratio of
            tokens to parameters, which leaves the two axes apart from one another unknown.
    """
    ratios = points.tokens / points.params
    sizes = len(np.unique(points.params))
    if sizes < 2 or ratios.max() < _SPREAD * ratios.min():
        raise ConfigError(
            f"{sizes} size(s) at {ratios.min():.4g} to {ratios.max():.4g} tokens to a parameter do "
            "not tell the two axes apart",
            "train two sizes or more at two ratios or more",
        )
    if len(points.loss) < _FEWEST:
        raise ConfigError(
            f"{len(points.loss)} points are given",
            f"give {_FEWEST} or more: five numbers are fitted",
        )
    law = fit(points.params, points.tokens, points.loss)
    drawn = bootstrap(points.params, points.tokens, points.loss, samples=draws)
    residual = np.log(points.loss) - np.log(law.predict(points.params, points.tokens))
    noise = float(np.sqrt((residual**2).sum() / max(1, len(residual) - 5)))
    top = float(points.flops.max())
    constants = {"E": "e", "alpha": "alpha", "beta": "beta"}
    return Analysis(
        points,
        law,
        {
            name: interval(np.array([getattr(one, field) for one in drawn]), level)
            for name, field in constants.items()
        },
        _splits(law, drawn, top, level),
        [] if held_out is None else _held_out(law, drawn, held_out, noise, level),
        level,
    )


def _splits(law: LossFit, drawn: Sequence[LossFit], top: float, level: float) -> list[Split]:
    """The best splits of some budgets; none where the loss does not fall along both axes."""
    usable = [one for one in drawn if _falls(one)]
    if not _falls(law) or len(usable) < level * len(drawn):
        return []
    made = []
    for flops in (top * times for times in _BUDGETS):
        params, tokens = law.best_split(flops)
        said = [one.best_split(flops) for one in usable]
        losses = [float(one.predict(*pair)) for one, pair in zip(usable, said, strict=True)]
        made.append(
            Split(
                flops, params, interval(np.array([n for n, _ in said]), level), tokens,
                float(law.predict(params, tokens)), interval(np.array(losses), level),
            )
        )  # fmt: skip
    return made


def _falls(law: LossFit) -> bool:
    """Tells whether more parameters and more tokens both help: exponents that can be told from 0.

    Below that the best split is a power of 1 / (alpha + beta) that no number holds.
    """
    return min(law.alpha, law.beta) > _FLAT and min(law.a, law.b) > _FLAT


def _held_out(
    law: LossFit, drawn: Sequence[LossFit], points: Points, noise: float, level: float
) -> list[HeldOut]:
    """The interval holds the spread of the law and the noise of one more run."""
    generator = np.random.default_rng(0)
    made = []
    for n, d, measured in zip(points.params, points.tokens, points.loss, strict=True):
        said = np.array([float(one.predict(n, d)) for one in drawn])
        low, high = interval(said * np.exp(noise * generator.standard_normal(len(said))), level)
        made.append(HeldOut(n, d, measured, float(law.predict(n, d)), low, high))
    return made


def shown(analysis: Analysis) -> list[str]:
    """Lines for people."""
    law, bounds = analysis.law, analysis.intervals
    spans = {name: f"[{low:.4f}, {high:.4f}]" for name, (low, high) in bounds.items()}
    lines = [
        f"law of {len(analysis.points.loss)} points: E + A / N^alpha + B / D^beta "
        f"(intervals {100 * analysis.level:g}%, bootstrap)",
        f"  E {law.e:.4f} {spans['E']}",
        f"  A {law.a:.4g}, alpha {law.alpha:.4f} {spans['alpha']}",
        f"  B {law.b:.4g}, beta {law.beta:.4f} {spans['beta']}",
    ]
    if analysis.splits:
        lines.append(
            f"{'FLOPs':>10} {'parameters':>11} {'interval':>21} {'tokens':>9} "
            f"{'per parameter':>13} {'loss':>7} interval"
        )
    else:
        lines.append("no best split: these points do not show that both axes lower the loss")
    for s in analysis.splits:
        span = f"[{s.params_interval[0]:.3g}, {s.params_interval[1]:.3g}]"
        lines.append(
            f"{s.flops:10.3g} {s.params:11.3g} {span:>21} {s.tokens:9.3g} "
            f"{s.tokens / s.params:13.3g} {s.loss:7.4f} "
            f"[{s.loss_interval[0]:.4f}, {s.loss_interval[1]:.4f}]"
        )
    for h in analysis.held_out:
        lines.append(
            f"held out, {h.params:,.0f} parameters on {h.tokens:,.0f} tokens: said {h.said:.4f} "
            f"[{h.low:.4f}, {h.high:.4f}], measured {h.measured:.4f}"
        )
    return lines


def picture(analysis: Analysis, path: Path, unit: str) -> None:
    """Loss over FLOPs as a PNG: the points, the law of each size, and the best of each budget.

    Args:
        analysis: what to draw.
        path: of the PNG.
        unit: of the loss, for its axis.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    points, law = analysis.points, analysis.law
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    norm, colors = LogNorm(points.params.min(), points.params.max()), colormaps["viridis"]
    sizes = np.unique(points.params)
    for n in sizes[:: max(1, len(sizes) // 8)]:
        d = np.geomspace(points.tokens.min(), points.tokens.max(), 60)
        axes.plot(_FLOPS * n * d, law.predict(n, d), color=colors(norm(n)), lw=0.8)
    drawn = axes.scatter(points.flops, points.loss, c=points.params, norm=norm, cmap=colors, s=18)
    if analysis.splits:
        budgets = np.geomspace(points.flops.min(), analysis.splits[-1].flops, 60)
        best = [float(law.predict(*law.best_split(flops))) for flops in budgets]
        axes.plot(budgets, best, "--", color="black", label="best split of each budget")
    for number, held in enumerate(analysis.held_out):
        at = _FLOPS * held.params * held.tokens
        half = [[held.said - held.low], [held.high - held.said]]
        axes.errorbar(
            [at], [held.said], yerr=np.maximum(half, 0), fmt="s", color="tab:orange", capsize=4,
            label="" if number else "prediction",
        )  # fmt: skip
        axes.plot([at], [held.measured], "x", color="tab:red", label="" if number else "measured")
    figure.colorbar(drawn, label="parameters")
    axes.set(xscale="log", xlabel="training FLOPs", ylabel=f"loss, {unit}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
    save(figure, path)


def facts(analysis: Analysis) -> dict[str, Any]:
    """The analysis as plain types."""
    return {
        "points": len(analysis.points.loss),
        "law": as_dict(analysis.law),
        "intervals": {name: list(span) for name, span in analysis.intervals.items()},
        "level": analysis.level,
        "splits": [vars(split) for split in analysis.splits],
        "held_out": [vars(held) for held in analysis.held_out],
    }

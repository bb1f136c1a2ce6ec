"""`gchat ladder`: small models of growing depth, the law of their losses, and the next rung.

Every rung trains the preset at one depth for the same multiple of its parameters. The losses of
the rungs give L = E + A / N^alpha (tokens grow with N, so one axis); the last rung can be held out
to see how well the others predict it. With several multiples the rungs are points of two axes,
which `gchat.research.scaling` analyses.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import ConfigError, GaiaError
from gchat.config import derive, load
from gchat.model_shape import matmul_params
from gchat.research.cells import Result
from gchat.research.loss_fit import LossFit, fit, interval
from gchat.research.options import check_seeds
from gchat.research.picture import save
from gchat.research.scaling import Points
from gchat.research.sweep import Sweep

LEVEL = 0.95
STEADIER = "lower the learning rates (--set optim.lr=…, for Muon optim.matrix_lr=… too)"
"""Remedy for trainings that diverged: trained again as they are, they diverge again."""
_DRAWS = 1000


@dataclass(frozen=True)
class Rung:
    """One size: its matmul parameters and the losses of its seeds, bits per byte."""

    depth: int
    params: int
    bpb: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.bpb)


@dataclass(frozen=True)
class Prediction:
    """A law of some rungs and what it says of another."""

    law: LossFit
    params: int
    bpb: float
    low: float | None
    """Ends of the interval; None where no rung has two seeds, which say how much one is off."""
    high: float | None
    straight: float
    """Straight line through the last two rungs in log-log, for comparison."""
    noise: float = 0.0
    """Standard deviation of a rung over its seeds."""
    measured: float | None = None


def ladder_sweep(
    preset: str, depths: Sequence[int], ratios: Sequence[float], seeds: Sequence[int],
    more: Sequence[str] = (),
) -> Sweep:  # fmt: skip
    """The sweep of a ladder: one size per depth and ratio of tokens to matmul parameters.

    Raises:
        ConfigError: fewer than four depths, no seed, a value twice, or a ratio not above 0.
    """
    if len(depths) < 4 or len(set(depths)) != len(depths):
        raise ConfigError(
            f"depths are {list(depths)}", "give four different ones or more: three fit any law"
        )
    if not ratios or len(set(ratios)) != len(ratios) or not all(0 < r < np.inf for r in ratios):
        raise ConfigError(f"--tokens-per-param is {list(ratios)}", "give different numbers above 0")
    check_seeds(seeds, "--seeds")
    sizes = {
        f"d{depth}" + (f"x{ratio:.17g}" if len(ratios) > 1 else ""): rung_words(depth, ratio)
        for depth in sorted(depths)
        for ratio in sorted(ratios)
    }
    return Sweep((preset, *more), {"ladder": ()}, sizes, tuple(seeds))


def rung_words(depth: int, ratio: float) -> tuple[str, ...]:
    """More words of `gchat train` for a depth and a ratio of tokens to matmul parameters."""
    return (f"--model.depth={depth}", "--training.tokens-per-param", str(ratio))


def params_of(arguments: Sequence[str], vocab: tuple[int, int]) -> tuple[int, int]:
    """Matmul parameters and training tokens of a rung's options.

    Args:
        arguments: words of `gchat train`.
        vocab: ids of the tokenizer, and rows of the embedding table.
    """
    return _params_of(tuple(arguments), vocab)


@cache
def _params_of(arguments: tuple[str, ...], vocab: tuple[int, int]) -> tuple[int, int]:
    config = load(list(arguments), prog="gchat ladder")
    derived, _ = derive(config, vocab_size=vocab[0], padded_vocab_size=vocab[1])
    return matmul_params(derived.model), derived.training.amounts.tokens


def check_ended(results: Sequence[Result], folder: Path) -> None:
    """Refuses trainings that neither ended nor diverged, which would be missing in the law unsaid.

    Raises:
        GaiaError: there are some, or every training diverged.
    """
    if left := [r for r in results if r.status != "diverged" and not _is_done(r)]:
        raise GaiaError(
            f"{len(left)} of {len(results)} trainings did not end: {named(left)}",
            f"see {folder}/results.jsonl, and run again: only these are trained",
        )
    if len(diverged(results)) == len(results):
        raise GaiaError(f"all {len(results)} trainings diverged", STEADIER)


def diverged(results: Sequence[Result]) -> list[Result]:
    """The trainings whose loss went out of bounds; they are kept, and no law holds them."""
    return [result for result in results if result.status == "diverged"]


def named(results: Sequence[Result], most: int = 8) -> str:
    """Sizes and seeds of some trainings, for people."""
    more = f" and {len(results) - most} more" if len(results) > most else ""
    return ", ".join(f"{r.size} (seed {r.seed})" for r in results[:most]) + more


def _is_done(result: Result) -> bool:
    return result.status == "done" and result.bpb is not None


def points(results: Sequence[Result], vocab: tuple[int, int]) -> tuple[Points, np.ndarray]:
    """Every finished cell as a point of two axes, and the depth of each [P]."""
    done = [r for r in results if _is_done(r)]
    params = [params_of(r.arguments, vocab)[0] for r in done]
    depths = [_depth(r) for r in done]
    made = Points(
        np.array(params, float),
        np.array([r.tokens for r in done], float),
        np.array([r.bpb for r in done], float),
    )
    return made, np.array(depths)


def rungs(results: Sequence[Result], vocab: tuple[int, int]) -> list[Rung]:
    """The rungs whose seeds all ended, by depth.

    Args:
        results: of `ladder_sweep`'s cells.
        vocab: ids of the tokenizer, and rows of the embedding table.
    """
    by_depth: dict[int, list[Result]] = {}
    for result in results:
        by_depth.setdefault(_depth(result), []).append(result)
    made = []
    for depth, group in by_depth.items():
        values = tuple(r.bpb for r in group if _is_done(r) and r.bpb is not None)
        if len(values) < len(group):
            continue
        made.append(Rung(depth, params_of(group[0].arguments, vocab)[0], values))
    return sorted(made, key=lambda rung: rung.depth)


def _depth(result: Result) -> int:
    """The depth in a size's name, `d4` or `d4x0.5`."""
    return int(result.size[1:].partition("x")[0])


def predict(
    known: Sequence[Rung], params: int, *, measured: float | None = None, seed: int = 0
) -> Prediction:
    """Predicts the loss of a model of `params` matmul parameters by the law of `known` rungs.

    The interval holds the bootstrap's spread of the law (rungs' seeds are drawn again), the seed
    noise of the predicted run itself, and how little few seeds say of that noise: without the last,
    it holds 87 times in 100 where 95 are said (four rungs of two seeds).

    Raises:
        ConfigError: fewer than three rungs.
    """
    n = np.array([rung.params for rung in known], float)
    means = np.array([rung.mean for rung in known])
    law = fit(n, None, means)
    generator = np.random.default_rng(seed)
    noise, freedom = _seed_noise(known)
    low = high = None
    if noise:
        noise_S = noise * np.sqrt(freedom / generator.chisquare(freedom, _DRAWS))
        errors_SP = noise_S[:, None] / np.sqrt([len(rung.bpb) for rung in known])
        drawn_SP = means + errors_SP * generator.standard_normal((_DRAWS, len(known)))
        # Their spread around the law that is said: least squares alone has another centre.
        spread_S = _quick(n, drawn_SP, params) - _quick(n, means[None], params)
        said_S = law.predict(params) + spread_S + noise_S * generator.standard_normal(_DRAWS)
        low, high = interval(said_S, LEVEL)
    slope = np.log(means[-1] / means[-2]) / np.log(n[-1] / n[-2])
    straight = float(means[-1] * (params / n[-1]) ** slope)
    return Prediction(law, params, float(law.predict(params)), low, high, straight, noise, measured)


def _seed_noise(known: Sequence[Rung]) -> tuple[float, int]:
    """Standard deviation over seeds, of all rungs together, and its degrees of freedom."""
    several = [rung.bpb for rung in known if len(rung.bpb) > 1]
    freedom = sum(len(bpb) - 1 for bpb in several)
    squares = sum(float(np.var(bpb)) * len(bpb) for bpb in several)
    return (np.sqrt(squares / freedom) if freedom else 0.0), freedom


def _quick(n: np.ndarray, losses_SP: np.ndarray, params: int) -> np.ndarray:
    """Predictions [S] of many fits at once: least squares in E and A on a grid of exponents."""
    best_S = np.full(len(losses_SP), np.inf)
    said_S = np.zeros(len(losses_SP))
    for alpha in np.linspace(0.02, 1.2, 237):
        x_P = n**-alpha
        centred_P = x_P - x_P.mean()
        a_S = np.maximum(losses_SP @ centred_P / (centred_P @ centred_P), 0)
        e_S = np.maximum(losses_SP.mean(1) - a_S * x_P.mean(), 0)
        residual_S = ((losses_SP - e_S[:, None] - a_S[:, None] * x_P) ** 2).sum(1)
        better_S = residual_S < best_S
        best_S = np.where(better_S, residual_S, best_S)
        said_S = np.where(better_S, e_S + a_S * params**-alpha, said_S)
    return said_S


def shown(known: Sequence[Rung], prediction: Prediction) -> list[str]:
    """Lines for people."""
    lines = [f"{'depth':>5} {'matmul parameters':>18} {'bpb':>8} {'sd':>8} seeds"]
    for rung in known:
        deviation = statistics.stdev(rung.bpb) if len(rung.bpb) > 1 else float("nan")
        lines.append(
            f"{rung.depth:5} {rung.params:18,} {rung.mean:8.4f} {deviation:8.4f} {len(rung.bpb)}"
        )
    law = prediction.law
    lines.append(f"law: {law.e:.4f} + {law.a:.4g} / N^{law.alpha:.4f}")
    span = "(no interval: one seed each)"
    if prediction.low is not None and prediction.high is not None:
        span = f"[{prediction.low:.4f}, {prediction.high:.4f}] ({100 * LEVEL:g}%)"
    line = (
        f"at {prediction.params:,}: {prediction.bpb:.4f} {span}, "
        f"straight line {prediction.straight:.4f}"
    )
    lines.append(line)
    if prediction.measured is not None:
        off, straight = (
            said - prediction.measured for said in (prediction.bpb, prediction.straight)
        )
        shares = (
            f" ({abs(off) / prediction.noise:.1f} and {abs(straight) / prediction.noise:.1f} seed "
            "deviations)"
            if prediction.noise
            else ""
        )
        lines.append(
            f"measured {prediction.measured:.4f}: the law is off by {off:+.4f}, the straight line "
            f"by {straight:+.4f}{shares}"
        )
    return lines


def picture(known: Sequence[Rung], prediction: Prediction, path: Path) -> None:
    """The rungs, the law and its prediction, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for rung in known:
        axes.plot([rung.params] * len(rung.bpb), rung.bpb, "o", color="tab:blue", alpha=0.6)
    x = np.geomspace(known[0].params, max(prediction.params, known[-1].params), 100)
    axes.plot(x, prediction.law.predict(x), color="tab:blue", label="law of the rungs")
    half = None
    if prediction.low is not None and prediction.high is not None:
        ends = (prediction.bpb - prediction.low, prediction.high - prediction.bpb)
        half = [[max(0.0, end)] for end in ends]
    axes.errorbar(
        [prediction.params], [prediction.bpb], yerr=half, fmt="s", color="tab:orange",
        label="prediction", capsize=4,
    )  # fmt: skip
    if prediction.measured is not None:
        axes.plot([prediction.params], [prediction.measured], "x", color="black", label="measured")
    axes.set_xscale("log")
    axes.set_xlabel("matmul parameters")
    axes.set_ylabel("validation, bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def as_dict(known: Sequence[Rung], prediction: Prediction) -> dict[str, Any]:
    """The ladder as plain types."""
    return {
        "rungs": [{"depth": r.depth, "params": r.params, "bpb": list(r.bpb)} for r in known],
        "law": {"E": prediction.law.e, "A": prediction.law.a, "alpha": prediction.law.alpha},
        "prediction": {
            "params": prediction.params,
            "bpb": prediction.bpb,
            "low": prediction.low,
            "high": prediction.high,
            "straight": prediction.straight,
            "noise": prediction.noise,
            "measured": prediction.measured,
        },
    }

"""The parametric loss fit against published constants, made data, and the averaged pitfall."""

import csv
from pathlib import Path

import numpy as np
import pytest

from gaia.errors import ConfigError
from gchat.research.loss_fit import LossFit, bootstrap, fit, interval

POINTS = Path(__file__).parents[4] / "shared" / "data" / "chinchilla" / "points.csv"
TRUE = LossFit(e=1.8, a=480.0, alpha=0.35, b=2000.0, beta=0.37)


def made(noise=0.0, seed=0, count=60):
    generator = np.random.default_rng(seed)
    n = np.exp(generator.uniform(np.log(1e7), np.log(1e10), count))
    d = n * np.exp(generator.uniform(np.log(2), np.log(200), count))
    return n, d, TRUE.predict(n, d) * np.exp(noise * generator.standard_normal(count))


def test_the_law_that_made_the_points_is_recovered():
    law = fit(*made())
    assert law.e == pytest.approx(TRUE.e, rel=1e-3)
    assert (law.alpha, law.beta) == pytest.approx((TRUE.alpha, TRUE.beta), rel=5e-3)
    assert law.predict(1e9, 2e10) == pytest.approx(TRUE.predict(1e9, 2e10), rel=1e-5)


def test_outliers_do_not_move_it():
    n, d, loss = made(noise=1e-4)
    loss[3] *= 1.3
    law = fit(n, d, loss)
    assert law.predict(1e10, 2e11) == pytest.approx(TRUE.predict(1e10, 2e11), rel=2e-3)


def test_one_axis():
    n = np.geomspace(1e6, 1e9, 6)
    law = fit(n, None, 1.2 + 90 * n**-0.3)
    assert (law.e, law.alpha) == pytest.approx((1.2, 0.3), rel=1e-3)


def test_the_best_split_is_the_lowest_loss_of_its_budget():
    n, d = TRUE.best_split(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    others = n * np.array([0.5, 0.9, 1.1, 2.0])
    assert (TRUE.predict(others, 1e21 / 6 / others) > TRUE.predict(n, d)).all()


@pytest.mark.parametrize(
    "law",
    [LossFit(2.0, 1e-20, 0.02, 1e20, 0.02), LossFit(2.0, 1e20, 0.02, 1e-20, 0.02),
     LossFit(2.0, 1e250, 24.0, 15.0, 0.3)],
)  # fmt: skip
def test_laws_that_a_bootstrap_draws_of_noise_have_figures_too(law):
    """Their best splits lie beyond what floats hold, or below one parameter."""
    n, d = law.best_split(1e12)
    assert n >= 1 and d >= 1 and n * d == pytest.approx(1e12 / 6)
    assert np.isfinite(law.predict(n, d))


def test_the_bootstrap_interval_covers_the_truth():
    n, d, loss = made(noise=3e-3)
    laws = bootstrap(n, d, loss, samples=20)
    low, high = interval(np.array([float(law.predict(1e11, 2e12)) for law in laws]), 0.99)
    assert low < TRUE.predict(1e11, 2e12) < high
    assert high - low < 0.1


def test_what_cannot_be_fitted_is_named():
    with pytest.raises(ConfigError, match="4 points are given"):
        fit(np.ones(4), np.ones(4), np.ones(4))
    with pytest.raises(ConfigError, match="not above 0"):
        fit(np.ones(6), None, np.array([1, 2, 3, 4, 5, np.nan]))


@pytest.mark.skipif(not POINTS.exists(), reason="needs ../shared/data/chinchilla")
def test_chinchilla_s_points_give_the_published_constants():
    """Besiroglu et al. 2024, table 1; and their explanation of the first paper's numbers."""
    with POINTS.open() as file:
        rows = [r for r in csv.DictReader(file) if r["loss"] and r["Training FLOP"]]
    n, c, loss = (
        np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss")
    )
    assert len(loss) == 245
    keep = loss < np.sort(loss)[-5]
    law = fit(n[keep], c[keep] / 6 / n[keep], loss[keep])
    assert law.e == pytest.approx(1.8172, abs=0.005)
    assert (law.alpha, law.beta) == pytest.approx((0.3478, 0.3658), abs=0.004)
    averaged = fit(n[keep], c[keep] / 6 / n[keep], loss[keep], summed=False)
    assert abs(averaged.alpha - 0.3478) > 0.004 or abs(averaged.e - 1.8172) > 0.005

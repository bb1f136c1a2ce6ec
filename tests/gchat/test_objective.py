"""The objective is an argument of the update: weights, missing fields, another loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from gaia import parallel
from gaia.data.batch import IGNORE, Batch
from gaia.errors import ConfigError
from gchat.objective import Objective, next_token
from gchat.train_state import graphdef, init_state
from gchat.train_step import make_train_step

CONFIG = tiny.train_config(optim={"clip_norm": 0.0})
INPUTS = tiny.tokens(4, 32, seed=1)
TARGETS = tiny.tokens(4, 32, seed=2)
SOME = np.random.default_rng(3).random((4, 32)) < 0.4


def step(batch, objective=next_token):
    """(loss, gradient norm, parameters) of one update from the tiny model's random weights."""
    mesh = parallel.make_mesh()
    state = init_state(CONFIG, mesh)._replace(params=tiny.make(CONFIG.model)[1])
    update = make_train_step(graphdef(CONFIG), CONFIG, mesh, objective)
    state, metrics = update(state, batch)
    return float(metrics.loss), float(metrics.grad_norm), jax.device_get(state.params)


def same(a, b):
    assert a[:2] == pytest.approx(b[:2], rel=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a[2], b[2])


def test_a_weight_of_zero_is_a_target_that_is_not_learned():
    masked = Batch(INPUTS, np.where(SOME, TARGETS, IGNORE))
    weighted = Batch(INPUTS, TARGETS, weights_BT=SOME.astype(np.float32))
    same(step(masked), step(weighted))


@pytest.mark.parametrize("weight", [0.001, pytest.param(3.0, marks=pytest.mark.slow)])
def test_only_the_ratio_of_weights_counts(weight):
    """Also where all of them together are below 1."""
    weights = np.full((4, 32), weight, np.float32)
    same(step(Batch(INPUTS, TARGETS)), step(Batch(INPUTS, TARGETS, weights_BT=weights)))


def test_a_field_that_the_objective_reads_must_be_there():
    needs = next_token._replace(fields=("inputs_BT", "targets_BT", "weights_BT"))
    with pytest.raises(ConfigError, match="reads weights_BT"):
        step(Batch(INPUTS, TARGETS), needs)


def test_another_objective_is_another_value():
    """Half the loss of each token, counted once: half the gradient."""
    half = Objective(next_token.fields, next_token.count, lambda *a: 0.5 * next_token.loss(*a))
    loss, norm, _ = step(Batch(INPUTS, TARGETS))
    assert step(Batch(INPUTS, TARGETS), half)[:2] == pytest.approx((loss / 2, norm / 2), rel=1e-6)
    assert jnp.isfinite(loss)

"""The update: overfitting, accumulation, fixed figures, donation, no wait for the device."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import tiny
from gaia import parallel
from gaia.data.batch import Batch
from gchat.train_state import TrainState, init_state, optimizer_of
from gchat.train_step import make_train_step

GOLDEN = Path(__file__).parent.parent / "golden"


def step_of(config):
    return make_train_step(tiny.graph_of(config.model), config, parallel.make_mesh())


@functools.cache
def compiled():
    """(graph, config, train_step) shared by the tests below: one compilation."""
    config = tiny.train_config()
    graph = tiny.graph_of(config.model)
    return graph, config, step_of(config)


def fresh_state(config=None):
    return init_state(config or compiled()[1], parallel.make_mesh())


def batch(seed=0, rows=4):
    ids = tiny.tokens(rows, 33, seed=seed)
    return jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])


def random_state(config, seed=0):
    """Weights in every branch, unlike the initialisation, which leaves them at zero."""
    _, params = tiny.make(config.model, seed)
    optimizer = optimizer_of(config)
    return TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))


def test_overfits_one_batch():
    train_step, state = compiled()[2], fresh_state()
    inputs, targets = batch()
    for _ in range(150):
        state, metrics = train_step(state, Batch(inputs, targets))
    assert float(metrics.loss) < 0.05
    assert int(state.step) == 150


def test_first_steps_are_the_golden_ones():
    spec = importlib.util.spec_from_file_location("make_one_step", GOLDEN / "make_one_step.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    expected = json.loads(maker.PATH.read_text())
    got = maker.measure()
    for name, values in expected.items():
        # Later steps magnify what fp32 sums in another order differ by.
        np.testing.assert_allclose(got[name][0], values[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(got[name], values, rtol=1e-3, err_msg=name)


def uneven(targets):
    """Masks 32, 27, 2 and 0 of the 32 targets of the four rows."""
    masked = np.asarray(targets).copy()
    for row, count in enumerate((32, 27, 2, 0)):
        masked[row, :count] = -1
    return jnp.asarray(masked)


def test_accumulation_changes_nothing_under_uneven_masks():
    """One batch of 4 or four micro-batches of 1, one of them without any target."""
    inputs, targets = batch(seed=1)
    targets = uneven(targets)
    results = {}
    for accumulate in (1, 4):
        # A large epsilon makes AdamW a smooth function of the gradient, so that differences of
        # 1e-8 in it are not blown up where a gradient is almost zero.
        config = tiny.train_config(
            training={"grad_accum": accumulate}, optim={"eps": 1e-2, "clip_norm": 0.5}
        )
        step = step_of(config)
        state, metrics = step(random_state(config), Batch(inputs, targets))
        results[accumulate] = (metrics, state.params)
    (one, params_1), (four, params_4) = results[1], results[4]
    assert float(one.loss) == pytest.approx(float(four.loss), rel=1e-6)
    assert float(one.grad_norm) == pytest.approx(float(four.grad_norm), rel=1e-5)
    assert float(one.grad_norm) > 0.5  # as it was before clipping
    for a, b in zip(jax.tree.leaves(params_1), jax.tree.leaves(params_4), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # And it is the mean over all targets that are not masked.
    graph, params = tiny.make(tiny.train_config().model)
    logits = np.asarray(tiny.logits(graph, params, inputs), np.float64)[..., : tiny.VOCAB]
    nll = reference.nll(logits, np.asarray(targets))
    assert float(one.loss) == pytest.approx(nll.sum() / 67, rel=1e-5)


def test_a_batch_without_targets_moves_nothing_but_decay():
    state, train_step = random_state(compiled()[1]), compiled()[2]
    before = np.asarray(state.params["embed"]["table"])
    inputs, targets = batch()
    state, metrics = train_step(state, Batch(inputs, jnp.full_like(targets, -1)))
    assert float(metrics.loss) == 0.0 and float(metrics.grad_norm) == 0.0
    assert (np.asarray(state.params["embed"]["table"]) == before).all()


def test_dropout_is_a_function_of_the_step():
    """With the seed of the run, which test_model.py covers by key; nothing else is stored."""
    config = tiny.train_config(model={"dropout": 0.3}, training={"grad_accum": 2})
    step = step_of(config)

    def loss(at):
        state = random_state(config)._replace(step=jnp.int32(at))
        return float(step(state, Batch(*batch()))[1].loss)

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


def test_the_state_is_donated():
    state, train_step = fresh_state(), compiled()[2]
    new, _ = train_step(state, Batch(*batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(state.params["embed"]["table"])


def test_the_step_moves_nothing_between_host_and_device():
    state, train_step = fresh_state(), compiled()[2]
    inputs, targets = batch()
    state, _ = train_step(state, Batch(inputs, targets))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state, metrics = train_step(state, Batch(inputs, targets))
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            train_step(state, Batch(np.asarray(inputs), targets))  # the guard is real
    assert np.isfinite(float(metrics.loss))


def test_muon_trains_too():
    config = tiny.train_config(optim={"name": "muon", "matrix_lr": 0.02})
    step, state = step_of(config), fresh_state(config)
    inputs, targets = batch()
    losses = []
    for _ in range(60):
        state, metrics = step(state, Batch(inputs, targets))
        losses.append(metrics.loss)
    assert float(losses[0]) > 4.0 and float(losses[-1]) < 0.5
    assert optax.tree.get(state.opt_state, "momentum") is not None

"""A batch ramp: what an option says, and steps counted in updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.batch_ramp import BatchRamp
from gaia.errors import ConfigError
from gaia.optim import OptimConfig, make_optimizer, schedule

FIELD = "training.batch_ramp"


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(0, 40), st.integers(1, 8), max_size=4))
def test_the_count_of_updates_turns_back_into_steps(stages):
    """Steps are walked one by one, and their updates counted: no formula of the ramp's own."""
    ramp = BatchRamp.read(FIELD, [f"{k}@{start}" for start, k in sorted(stages.items())])
    steps, rates = [], []
    for step in range(50):
        parts = ramp.parts_at(step)
        assert parts in ramp.kinds
        steps += [step + part / parts for part in range(parts)]
        rates += [parts**-0.5] * parts
    updates = jnp.arange(len(steps))
    np.testing.assert_allclose(ramp.step_of(updates), steps, atol=1e-5)
    np.testing.assert_allclose(ramp.rate_of(updates), rates, rtol=1e-6)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("4",), "VALUE@STEP"),
        (("x@3",), "VALUE@STEP"),
        (("0@3",), "0 updates a step"),
        (("1.5@3",), "1.5 updates a step"),
        (("4@9", "2@3"), "order"),
        (("4@1epoch",), "how many steps an epoch has"),
    ],
)
def test_what_is_no_ramp_is_refused(texts, said):
    with pytest.raises(ConfigError, match=said):
        BatchRamp.read(FIELD, texts)


@pytest.mark.parametrize(("texts", "said"), [(("4@0", "1@20"), "1@20"), (("1@0",), "holds before")])
def test_a_stage_without_effect_is_refused(texts, said):
    with pytest.raises(ConfigError, match=said):
        BatchRamp.read(FIELD, texts).check(FIELD, 20)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_schedules_follow_steps_and_rates_the_root_of_the_batch(name):
    """Without gradients a matrix moves by rate times decay of the update, and nothing else."""
    config = OptimConfig(
        name=name, lr=0.5, matrix_lr=0.5, schedule="wsd", warmup_steps=3, clip_norm=0.0,
        weight_decay=0.1, matrix_weight_decay=0.1, decay_schedule="linear",
        momentum_start=0.5, momentum_final=0.6,
    )  # fmt: skip
    steps, ramp = 8, BatchRamp.read(FIELD, ("4@1", "2@4", "1@6"))
    optimizer = make_optimizer(config, steps, {"w": "matrix"}, ramp)
    share, weights = schedule(config, steps), {"w": jnp.full((1, 4, 4), 2.0)}
    state, zeros = optimizer.init(weights), jax.tree.map(jnp.zeros_like, weights)
    for step, parts in enumerate((1, 4, 4, 4, 2, 2, 1, 1)):
        for part in range(parts):
            at = step + part / parts
            updates, state = optimizer.update(zeros, state, weights)
            decay = 0.1 * max(0.0, 1 - at / (steps - 1))
            wanted = -0.5 * float(share(at)) * parts**-0.5 * decay * 2.0
            np.testing.assert_allclose(updates["w"], wanted, rtol=1e-5, atol=1e-9)

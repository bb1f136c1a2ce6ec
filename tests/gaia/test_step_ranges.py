"""Weight decay by step ranges: what an option says, and what an update does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaia.errors import ConfigError
from gaia.optim import OptimConfig, make_optimizer
from gaia.step_ranges import in_steps, read_changes, stepwise


def test_epochs_become_steps():
    assert in_steps("f", ("0.05@2epochs", "0.01@3.5epochs"), 10.0) == ("0.05@20", "0.01@35")
    assert in_steps("f", ("0.05@1epoch", "0@70"), 12.4) == ("0.05@12", "0@70")
    with pytest.raises(ConfigError, match="order"):
        in_steps("f", ("0.05@2epochs", "0.01@15"), 10.0)  # step 15 lies before epoch 2


@pytest.mark.parametrize(
    "text", ["0.05", "0.05@", "@4", "0.05@-3", "-1@3", "nan@3", "inf@3", "x@3", "0.05@2weeks"]
)
def test_a_change_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"VALUE@STEP"):
        read_changes("optim.weight_decay_steps", (text,))


def test_changes_out_of_order_and_epochs_without_data_are_refused():
    with pytest.raises(ConfigError, match="order"):
        read_changes("f", ("0.05@20", "0.01@10"))
    with pytest.raises(ConfigError, match="how many steps"):
        stepwise(0.1, ("0.05@2epochs",), "f")


@pytest.mark.parametrize(("name", "role"), [("adamw", "matrix"), ("muon", "matrix")])
def test_the_decay_of_each_step_is_that_of_its_range(name, role):
    """Without gradients a matrix shrinks by lr * decay, and by nothing else."""
    lr = 0.5
    config = OptimConfig(
        name=name, lr=lr, matrix_lr=lr, schedule="constant", warmup_steps=0, clip_norm=0.0,
        weight_decay=0.1, weight_decay_steps=("0.05@2", "0@4"),
        matrix_weight_decay=0.1,
        matrix_weight_decay_steps=("0.05@2", "0@4") if name == "muon" else (),
    )  # fmt: skip
    config.check(10)
    optimizer = make_optimizer(config, 10, {"w": role})
    weights = {"w": jnp.full((1, 4, 4), 2.0)}
    state, zeros, seen = optimizer.init(weights), jax.tree.map(jnp.zeros_like, weights), []
    for _ in range(6):
        updates, state = optimizer.update(zeros, state, weights)
        new = jax.tree.map(jnp.add, weights, updates)
        seen.append(float(1 - new["w"][0, 0, 0] / weights["w"][0, 0, 0]) / lr)
        weights = new
    np.testing.assert_allclose(seen, [0.1, 0.1, 0.05, 0.05, 0.0, 0.0], atol=1e-6)


def test_muons_changes_have_no_effect_on_adamw():
    with pytest.raises(ConfigError, match="is of muon"):
        OptimConfig(warmup_steps=0, matrix_weight_decay_steps=("0.1@3",)).check(10)


@pytest.mark.parametrize("field", ["weight_decay_steps", "matrix_weight_decay_steps"])
def test_a_change_behind_the_run_is_refused_and_an_epoch_behind_it_left_out_with_a_word(field):
    def optim(*texts):
        return OptimConfig(name="muon", warmup_steps=0, **{field: texts})

    with pytest.raises(ConfigError, match=rf"{field} has 0.05@20, and the run has only 20 steps"):
        optim("0.07@2", "0.05@20").check(20)
    optim("0.05@19", "0.05@99epochs").check(20)  # how long an epoch is, the data says
    resolved, said = optim("0.05@1epochs", "0.02@2epochs", "0.01@3epochs").in_steps(10, 20)
    assert getattr(resolved, field) == ("0.05@10",)
    assert said == [
        f"optim.{field}: 0.02@2epochs is step 20 of 20, and left out",
        f"optim.{field}: 0.01@3epochs is step 30 of 20, and left out",
    ]
    resolved.check(20)

"""Traces of chosen steps."""

import jax.numpy as jnp
import pytest

from gaia.errors import ConfigError
from gaia.profile import StepTrace


def test_traces_the_chosen_steps_only(tmp_path):
    trace = StepTrace("3:4", tmp_path)
    running = []
    x = jnp.zeros(4)
    for step in range(1, 8):
        trace.before(step, x)
        running.append(trace.running)
        x = x + 1
    trace.stop(x)
    assert running == [False, False, True, True, False, False, False]
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_run_that_ends_inside_still_writes(tmp_path):
    trace = StepTrace("2", tmp_path)
    trace.before(2, jnp.zeros(1))
    trace.stop(jnp.zeros(1))
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["a", "3:", "5:4", "0:2", "1:2:3", "-1"])
def test_other_ranges_are_refused(steps, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.profile is"):
        StepTrace(steps, tmp_path)

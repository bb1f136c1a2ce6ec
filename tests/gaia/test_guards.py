"""Bad losses are judged alike by every attempt; what hangs is told from what is slow."""

import gc
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from gaia.errors import ConfigError
from gaia.guards import (
    HUNG,
    LAG,
    GuardConfig,
    LossGuard,
    StopRequest,
    Watchdog,
    keep_if_finite,
)

SPIKES = GuardConfig(policy="skip", spike_factor=2.0, spike_window=8)


def judged(guard, losses, first=1):
    return [guard.judge(step, loss, 1.0) for step, loss in enumerate(losses, start=first)]


def test_a_second_ctrl_c_is_not_lost_in_a_callback_of_the_collector():
    """JAX registers one; Python prints what is raised in it, and goes on."""
    armed = []

    def callback(phase, info):
        if armed:
            armed.clear()
            signal.raise_signal(signal.SIGINT)
            for _ in range(3):  # signals are handled where a loop jumps back
                pass

    gc.collect()
    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest(lambda: None):
            signal.raise_signal(signal.SIGINT)
            armed.append(True)
            gc.collect()
            time.sleep(10)
    finally:
        gc.callbacks.remove(callback)


def test_a_spike_is_above_the_factor_times_the_running_median():
    guard = LossGuard(SPIKES)
    assert judged(guard, [3.0] * 20) == [None] * 20
    assert guard.limit(21) == 6.0
    assert guard.judge(21, 6.0, 1.0) is None
    reason = guard.judge(22, 6.1, 1.0)
    assert reason == "train/loss is 6.1000, above 2 times the running median 3"
    # A bad loss never becomes part of the median: the same again is bad again.
    assert all(judged(guard, [100.0] * 30, first=23))


def test_the_first_losses_are_never_spikes():
    guard = LossGuard(SPIKES)
    assert judged(guard, [1.0] * (LAG + 6) + [50.0]) == [None] * (LAG + 7)
    assert not any(judged(LossGuard(GuardConfig()), [1.0] * 40 + [1e9]))


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_what_is_not_finite_is_bad(loss, norm):
    assert "nan" in LossGuard(GuardConfig()).judge(1, loss, norm) or loss == np.inf


def test_a_restored_guard_has_the_same_limits():
    rng = np.random.default_rng(0)
    losses = (3 + rng.standard_normal(60)).tolist()
    whole, first = LossGuard(SPIKES), LossGuard(SPIKES)
    judged(first, losses[:40])
    later = LossGuard(SPIKES)
    later.restore(first.state())
    limits = []
    for guard, begin in ((whole, 0), (later, 40)):
        judged(guard, losses[begin:40])
        seen = []
        for step in range(41, 61):
            seen.append(guard.limit(step))
            guard.judge(step, losses[step - 1], 1.0)
        limits.append(seen)
    assert limits[0] == limits[1] and len(set(limits[0])) > 5


def test_passed_over_batches_shift_the_ones_after():
    guard = LossGuard(GuardConfig(max_rollbacks=2))
    assert [guard.position(step) for step in range(4)] == [0, 1, 2, 3]
    assert guard.may_roll_back(2) and guard.may_roll_back(3)
    # steps 1 2 3 4 take batches 0 1 4 5
    assert [guard.position(step) for step in range(5)] == [0, 1, 4, 5, 6]
    assert not guard.may_roll_back(9)
    later = LossGuard(GuardConfig())
    later.restore(guard.state())
    assert later.skipped_batches == {2, 3, 9}


def test_skips_in_a_row_are_bounded():
    guard = LossGuard(GuardConfig(policy="skip", max_skips=2))
    assert [guard.may_skip() for _ in range(3)] == [True, True, False]
    guard.judge(4, 1.0, 1.0)
    assert guard.may_skip()


@pytest.mark.parametrize(
    ("loss", "norm", "limit", "kept"),
    [
        (1.0, 1.0, np.inf, "new"),
        (1.0, 1.0, 1.0, "new"),
        (1.5, 1.0, 1.0, "old"),
        (np.nan, 1.0, np.inf, "old"),
        (1.0, np.inf, np.inf, "old"),
    ],
)
def test_a_bad_update_is_left_out_on_the_device(loss, norm, limit, kept):
    new = {"w": jnp.array([np.nan, 2.0]), "count": jnp.array(5)}
    old = {"w": jnp.array([1.0, 1.0]), "count": jnp.array(4)}
    got = keep_if_finite(new, old, *(jnp.float32(x) for x in (loss, norm, limit)))
    np.testing.assert_array_equal(got["w"], {"new": new, "old": old}[kept]["w"])
    assert got["count"] == 5  # the step has taken its batch


def test_limits_that_cannot_work():
    with pytest.raises(ConfigError, match=r"guards\.spike_factor is 0\.5"):
        GuardConfig(spike_factor=0.5).check(in_flight=2)
    with pytest.raises(ConfigError, match=r"run.in_flight is 8 with guards.spike_factor"):
        GuardConfig(spike_factor=2.0).check(in_flight=8)


def test_a_slow_phase_is_no_hang_and_a_step_is():
    now = [0.0]
    dog = Watchdog(minutes=1, clock=lambda: now[0])
    now[0] = 239.0  # what comes before the first step compiles
    assert dog.problem() is None
    dog.alive("the last was step 7")
    now[0] += 60
    assert dog.problem() is None
    with dog.slow("evaluating"):
        now[0] += 200
        assert dog.problem() is None
        dog.alive("evaluating, batch 3 of 9")
        now[0] += 61
        assert "evaluating, batch 3 of 9" in dog.problem()
    now[0] += 60
    assert dog.problem() is None
    now[0] += 1
    assert dog.problem() == (
        "no step finished for 1.02 minutes (guards.hang_minutes); the last was step 7"
    )
    now[0] += 1e9
    assert Watchdog(minutes=0, clock=lambda: now[0]).problem() is None


HANG = """
import threading, time
from gaia.guards import Watchdog
def waits_for_ever():
    threading.Event().wait()
with Watchdog(0.001, at_end=lambda: print("told", flush=True)) as dog:
    dog.alive("the last was step 3")
    waits_for_ever()
"""


def test_a_hang_ends_the_process_with_all_stacks(user_environment):
    done = subprocess.run(
        [sys.executable, "-c", HANG], env=user_environment, capture_output=True, text=True
    )
    assert done.returncode == HUNG
    assert "no step finished" in done.stderr and "the last was step 3" in done.stderr
    assert "waits_for_ever" in done.stderr and "Thread" in done.stderr
    assert done.stdout == "told\n"


def test_python_that_cannot_run_is_ended_too(user_environment):
    """A stopped interpreter lock: faulthandler's own thread has to do it."""
    code = (
        "import ctypes, faulthandler\n"
        "from gaia import guards\n"
        "dog = guards.Watchdog(0.0005)\n"
        "later = faulthandler.dump_traceback_later\n"
        "faulthandler.dump_traceback_later = lambda s, exit: later(0.2, exit=exit)\n"
        "dog._end = lambda problem: None\n"
        "with dog:\n"
        "    import time; time.sleep(0.1)\n"
        "    ctypes.PyDLL(None).pause()\n"  # PyDLL keeps the lock
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=user_environment, capture_output=True, text=True
    )
    assert done.returncode not in (0, -signal.SIGTERM)
    assert "Timeout" in done.stderr

"""Goodput from recorded times, by exact arithmetic: kills, restarts, compiling, idle time."""

import pytest

import tiny
from gchat.run.goodput import goodput
from gchat.run.progress import Progress


def attempt(started, resume_step, pid):
    return {"started": started, "resume_step": resume_step, "host": "a", "pid": pid}


def steps(*milliseconds, first=1):
    return {"perf/step_ms": list(enumerate(map(float, milliseconds), start=first))}


def test_compiling_evaluating_and_starting_are_wall_time_and_no_steps():
    # Opened at 1,000; 8 s of compiling within step 1; three more steps of 2 s; ended at 1,032.
    good = goodput(steps(10_000, 2_000, 2_000, 2_000), [attempt(1_005, 0, 1)],
                   began=1_000, ended=1_032)  # fmt: skip
    assert good == (8.0, 32, 0) and good.share == 0.25


def test_a_killed_attempt_costs_its_lost_steps_and_the_time_until_the_next():
    """Steps 3 to 9 were trained and lost: 100 to 120, killed, resumed at 150 from step 2."""
    log = steps(2_000, 2_000, 7_000, 2_000)  # step 3 compiled again
    attempts = [attempt(101, 0, 1), attempt(150, 2, 2)]
    assert goodput(log, attempts, began=100, ended=164) == (8.0, 64, 1)


def test_a_rollback_is_another_attempt_and_no_restart():
    attempts = [attempt(100, 0, 1), attempt(110, 1, 1)]
    assert goodput(steps(1_000, 1_000), attempts, began=100, ended=120) == (2.0, 20, 0)


def test_skipped_updates_are_no_work():
    log = steps(1_000, 1_000, 1_000) | {"train/skipped": [(2, 1.0)]}
    assert goodput(log, [attempt(0, 0, 1)], began=0, ended=10) == (2.0, 10, 0)


def test_a_run_without_steps_has_no_goodput():
    assert goodput({}, [attempt(0, 0, 1)], began=0, ended=10) is None


@pytest.mark.parametrize("finished_at", [None, 130.0])
def test_time_after_the_end_counts_only_where_the_run_was_not_finished(finished_at):
    """Opened at 100, its last line at 130, taken up again at 190, ended at 200."""
    config = tiny.train_config()
    first, second = (Progress(config, 1e12, "a peak") for _ in range(2))
    first.began, second.began = 100.0, 190.0
    second.restore(first.state(), finished_at=finished_at)
    attempts = [attempt(100, 0, 1), attempt(190, 2, 2)]
    good = goodput(steps(5_000, 5_000, 5_000), attempts, began=second.began, ended=200.0,
                   idle=second.idle)  # fmt: skip
    assert good == (15.0, 100.0 if finished_at is None else 40.0, 1)
    third = Progress(config, 1e12, "a peak")
    third.restore(second.state())  # the idle time stays in the checkpoints
    assert (third.began, third.idle) == (second.began, second.idle)


def test_a_checkpoint_that_does_not_say_when_the_run_began():
    progress = Progress(tiny.train_config(), 1e12, "a peak")
    progress.began = 500.0
    progress.restore({"seconds": 3.0, "seconds_to_target": None})
    good = goodput(steps(1_000), [attempt(400, 0, 1)], began=progress.began, ended=510.0)
    assert good == (1.0, 110.0, 0)  # run.json knows

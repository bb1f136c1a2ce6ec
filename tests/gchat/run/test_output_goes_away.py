"""A pipe whose reader has gone, a terminal that was closed: the run goes on, or saves and stops."""

import os
import pty
import signal
import subprocess
import sys

import runs

STEPS = 40


def command(data_dir, folder, steps=STEPS):
    args = runs.arguments(data_dir, folder, "--eval.every-steps", "0", steps=steps)
    return [sys.executable, "-m", "gchat.train", *map(str, args)]


def test_a_reader_that_has_seen_enough_does_not_end_the_run(data_dir, tmp_path, user_environment):
    """`gchat train … | head -1`."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(data_dir, folder),
        env=user_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout.readline().startswith(b"model:")
    process.stdout.close()
    assert process.wait() == 0
    assert list(runs.losses(folder)) == list(range(1, STEPS + 1))
    assert runs.newest(folder).name == str(STEPS)


def test_a_closed_terminal_saves_and_stops(data_dir, tmp_path, user_environment):
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()
    steps = 100_000  # it must not come to its end before the signal does
    process = subprocess.Popen(
        command(data_dir, folder, steps),
        env=user_environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"step 3/" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)  # from here on every write fails
    process.send_signal(signal.SIGHUP)
    try:
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
    saved = int(runs.newest(folder).name)
    assert 3 <= saved < steps
    assert list(runs.losses(folder)) == list(range(1, saved + 1))

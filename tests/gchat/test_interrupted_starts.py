"""Starting goes wrong, or is interrupted: one line, and a status that says which."""

import os
import signal
import subprocess
import sys

import pytest

from gaia.guards import StopRequest


def test_a_package_that_is_missing_is_named_with_its_extra():
    """After a plain `pip install .` there is no tyro and no jax."""
    code = (
        "import sys; sys.modules.update(tyro=None, jax=None, yaml=None, numpy=None)\n"
        "from gchat.__main__ import main\n"
        "sys.exit(10 * main(['--help']) + main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "sample", "--run", "r", "--prompt", "x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "usage: gchat VERB" in done.stdout
    assert done.stderr.count("\n") == 1 and ".[train]" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_for_a_stop(number):
    asked, before = [], signal.getsignal(number)
    with StopRequest(lambda: asked.append(number)) as stop:
        os.kill(os.getpid(), number)
        assert stop.signal == number.name
    assert asked == [number] and signal.getsignal(number) == before


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(lambda: pytest.fail("asked")):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_starting_twice_is_no_traceback():
    """The second arrives while the process cleans up after the first."""
    code = (
        "import os, signal, sys\n"
        "from gaia.errors import run_cli\n"
        "def verb(args):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "status = run_cli('gchat', verb, [])\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "gchat: interrupted\n"
    assert done.returncode == -signal.SIGINT

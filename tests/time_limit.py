"""A limit on the time of one test: what waits for ever is named, with its stacks and its children.

A pytest plugin (conftest.py loads it) that run.sh sets with GAIA_TEST_LIMIT_S. When a test's setup,
call or teardown has taken so many seconds, the stacks of all threads and the processes below this
one are written to stderr, those processes are killed, and the test fails. Where the interpreter
itself is stuck (a deadlock within C++) no signal handler can run: then pytest's
`faulthandler_timeout` ends the worker, which fails that test and leaves the others to a new worker.
"""

import faulthandler
import os
import signal
import sys

import psutil
import pytest

_SECONDS = int(os.environ.get("GAIA_TEST_LIMIT_S", "0"))  # at once: tests change the environment
_MOST_ARGUMENTS = 200


def _report(what):
    """Writes what is waiting; returns the processes below this one."""
    out = sys.__stderr__
    print(f"\n=== {what}: {os.environ.get('PYTEST_CURRENT_TEST', '')}", file=out)
    faulthandler.dump_traceback(file=out, all_threads=True)
    below = psutil.Process().children(recursive=True)
    for one in below:
        try:
            line = " ".join(one.cmdline())[:_MOST_ARGUMENTS]
            print(f"child {one.pid} of {one.ppid()}, {one.status()}: {line}", file=out)
        except psutil.NoSuchProcess:
            continue
    out.flush()
    return below


def _limited():
    def give_up(number, frame):
        what = f"took more than {_SECONDS} s"
        for one in _report(what):
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        pytest.fail(f"{what}; its stacks and children are on stderr")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    """Limits the fixtures' beginnings."""
    return (yield from _limited())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Limits the test."""
    return (yield from _limited())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    """Limits the fixtures' ends."""
    return (yield from _limited())

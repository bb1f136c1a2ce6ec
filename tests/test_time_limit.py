"""A test that waits for ever fails, names where it waited, and lets the others go on."""

import os
import subprocess
import sys

from conftest import ROOT

HUNG = """
import ctypes, subprocess, sys, threading

def test_a_child_that_does_not_end():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(300)"])

def test_a_lock_that_nobody_opens():
    threading.Event().wait()

def test_code_that_hears_no_signal():
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)

def test_that_ends():
    pass
"""


def test_what_hangs_is_named_and_killed_and_the_rest_runs(tmp_path):
    (tmp_path / "test_hung.py").write_text(HUNG)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["time_limit"]\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "1", "-p", "no:cacheprovider", "-o",
         "faulthandler_timeout=2", "-o", "faulthandler_exit_on_timeout=true", "test_hung.py"],
        cwd=tmp_path, text=True, capture_output=True, timeout=120,
        env=os.environ | {"GAIA_TEST_LIMIT_S": "1", "PYTHONPATH": str(ROOT / "tests"),
                          "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    said = ran.stdout + ran.stderr
    assert "3 failed, 1 passed" in said, said
    assert "crashed while running 'test_hung.py::test_code_that_hears_no_signal'" in said
    assert "child" in said and "time.sleep(300)" in said.split("child", 1)[1]
    assert "in test_a_lock_that_nobody_opens\n" in said  # the stack of the one that waits

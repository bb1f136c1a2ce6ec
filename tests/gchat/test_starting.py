"""The first second of a command: Ctrl-C, packages that are not installed, noise of libraries."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gaia import runtime

ROOT = Path(__file__).resolve().parents[2]

INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from gchat.__main__ import main
sys.argv[1:] = ["train", "--data-dir", "nowhere"]
sys.exit(main())
"""


def run(*args, env):
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", ["tyro", "jaxlib.xla_client"])
def test_ctrl_c_while_importing_is_one_line(module, user_environment):
    ended = run("-c", INTERRUPTED_WHILE_IMPORTING.format(module=module), env=user_environment)
    assert (ended.returncode, ended.stderr) == (130, "\ngchat: interrupted\n")


@pytest.mark.parametrize("verb", ["train", "sample", "data"])
def test_without_the_extra_a_verb_names_it(verb, user_environment):
    """-S leaves out site-packages: what `pip install .` without an extra lacks."""
    args = [verb, *(["count", "d"] if verb == "data" else [])]
    ended = run("-S", "-m", "gchat", *args, env=user_environment)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "is not installed; run `pip install -e '.[train]'`" in ended.stderr


def test_without_the_extra_help_is_help(user_environment):
    ended = run("-S", "-m", "gchat", "--help", env=user_environment)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: gchat VERB")


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(not runtime.only_cpu(), reason="there is an accelerator")
def test_libtpu_is_silent_where_there_is_no_tpu(user_environment):
    env = {k: v for k, v in user_environment.items() if k != "JAX_PLATFORMS"}
    code = "from gaia.runtime import start; print(start(compile_cache=False).platform)"
    ended = run("-c", code, env=env)
    assert (ended.stdout, ended.stderr) == ("cpu\n", "")

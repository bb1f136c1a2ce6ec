"""A run folder of somebody else: every reader works there, and writes nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import runs
from gchat.__main__ import main

STEPS = 12
# Takes from root what lets it write everywhere (another user has none of it), then becomes the
# command: prctl(2) PR_CAPBSET_DROP of CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER.
BOUNDED = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2, 3):
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def theirs(data_dir, tmp_path_factory):
    """A finished run that nobody here may write: owned by another user where that can be done."""
    folder = tmp_path_factory.mktemp("theirs") / "run"
    assert main(["train", *runs.arguments(data_dir, folder, steps=STEPS)]) == 0
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, 12345, 12345)
    yield folder
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def states(folder):
    """Inode, size and times of every file and folder: writing would change one of them."""
    facts = {path: path.stat() for path in [folder, *folder.rglob("*")]}
    return {p: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in facts.items()}


def python(*args):
    return subprocess.run(
        [sys.executable, "-c", BOUNDED, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def gchat(*args):
    return python("-m", "gchat", *args)


def test_the_folder_cannot_be_written(theirs):
    for path in (theirs / "new", theirs / "config.yaml"):
        assert "PermissionError" in python("-c", f"open({str(path)!r}, 'a')").stderr


@pytest.mark.parametrize(
    "verb",
    [
        ("sample", "--prompt", "the", "--max-tokens", "2", "--run"),
        pytest.param(("eval", "bpb", "--text", "{text}", "--run"), marks=pytest.mark.slow),
        pytest.param(("checkpoints",), marks=pytest.mark.slow),
    ],
)
def test_readers_work_and_write_nothing(theirs, tmp_path, verb):
    (tmp_path / "text").write_text("the small model")
    before = states(theirs)
    done = gchat(*(word.format(text=tmp_path / "text") for word in verb), theirs, "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout)
    assert states(theirs) == before


def test_resuming_it_is_refused_in_one_line(theirs):
    before = states(theirs)
    done = gchat("train", "--resume", "--run-dir", theirs, "--extend", "--max-steps", STEPS + 4)
    assert done.returncode != 0 and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr and str(theirs) in done.stderr
    assert states(theirs) == before


@pytest.mark.slow
def test_a_copy_of_it_is_ones_own(theirs, tmp_path):
    mine = shutil.copytree(theirs, tmp_path / "mine")
    for path in [mine, *mine.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    done = gchat("train", "--resume", "--run-dir", mine, "--extend", "--max-steps", STEPS + 4)
    assert done.returncode == 0, done.stderr

"""A clone that tests of research train in."""

import subprocess

import pytest


@pytest.fixture
def clone(tmp_path):
    """A committed clone of one package, with a training that is only said to be one."""
    root = tmp_path / "clone"
    (root / "gchat").mkdir(parents=True)
    (root / "requirements").mkdir()
    (root / "requirements" / "cpu.txt").write_text("jax\n")
    (root / "gchat" / "model.py").write_text("import os, beside.x\n")
    (root / "gchat" / "train.py").write_text("print('a word')\n")
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for words in (("init", "-q"), ("add", "-A"), (*author, "commit", "-qm", "main")):
        subprocess.run(["git", "-C", root, *words], check=True)
    return root

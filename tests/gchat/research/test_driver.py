"""`gchat research run` goes on in the judge's tree: here as far as the process that it becomes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gchat.research import driver
from gchat.research.worktrees import TreeError


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose main says one thing, and whose working tree another."""
    root = tmp_path / "clone"
    root.mkdir()
    (root / "said.py").write_text("by = 'main'\n")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "main"]):
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        subprocess.run(["git", "-C", str(root), *author, *words], check=True)
    (root / "said.py").write_text("by = 'an agent'\n")
    monkeypatch.chdir(root)
    monkeypatch.delenv(driver._DRIVEN, raising=False)
    return root


@pytest.fixture
def become(monkeypatch):
    """The process that the verb becomes: (words behind gchat, its environment), or None."""
    became = []
    monkeypatch.setattr(os, "execve", lambda path, line, env: became.append((line[3:], env)))

    def run(*words):
        became.clear()
        driver.hand_over("run", words)
        return became[0] if became else None

    return run


@pytest.mark.parametrize("judge", [(), ("--judge", "main"), ("--judge=main",)])
def test_the_judge_s_own_code_runs_the_experiment(clone, become, judge):
    words = ("--minutes", "1", *judge)
    line, environment = become(*words)
    assert line == ["research", "run", *words]
    tree = Path(environment["PYTHONPATH"])
    assert (tree / "said.py").read_text() == "by = 'main'\n"
    assert environment["PYTHONSAFEPATH"] == "1"  # else the clone's packages would come first
    (tree / "mark").touch()
    again = become(*words)[1]["PYTHONPATH"]
    assert again == str(tree) and (tree / "mark").exists()  # laid out once


def test_it_stays_where_it_is_the_judge_or_only_help_is_wanted(clone, become, monkeypatch):
    assert become("--help") is None
    assert become("--judge", ".") is None
    monkeypatch.setenv(driver._DRIVEN, "1")
    assert become() is None


def test_nothing_that_an_agent_may_break_is_needed_to_reach_the_judge():
    """Neither the model nor what imports it: a tree that cannot start is a crash with a line."""
    program = "import gchat.__main__, gchat.research.driver, sys; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    loaded = {name for name in said if name.startswith(("gchat.", "gaia."))}
    assert {name for name in loaded if not name.startswith("gchat.research.")} <= {
        "gchat.__main__", "gchat.research", "gaia.config", "gaia.errors", "gaia.extras",
        "gaia.interrupt", "gaia.option_text",
    }  # fmt: skip


def test_an_unknown_judge_is_one_line(clone, become):
    with pytest.raises(TreeError, match="'mian' is no branch or commit; use main") as refused:
        become("--judge", "mian")
    assert "\n" not in str(refused.value)

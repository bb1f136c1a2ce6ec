"""`gchat research run` goes on in the judge's tree: here as far as the process that it becomes."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gaia.errors import ConfigError
from gchat.research import driver


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
        driver.hand_over(words)
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
    made = tree.stat().st_ino
    again = become(*words)[1]["PYTHONPATH"]
    assert again == str(tree) and tree.stat().st_ino == made  # laid out once


@pytest.mark.parametrize("edit", ["said.py", "new.py"])
def test_a_judge_that_was_edited_is_laid_out_again(clone, become, edit):
    """An agent may have edited every file of a name below the clone."""
    tree = Path(become()[1]["PYTHONPATH"])
    (tree / edit).write_text("by = 'an agent'\n")
    assert become()[1]["PYTHONPATH"] == str(tree)
    assert (tree / "said.py").read_text() == "by = 'main'\n" and not (tree / "new.py").exists()


def test_it_stays_where_it_is_the_judge_or_only_help_is_wanted(clone, become, monkeypatch):
    assert become("--help") is None
    assert become("--description", "-h")  # text: the experiment is the judge's all the same
    assert become("--judge", ".") is None
    monkeypatch.setenv(driver._DRIVEN, "1")
    assert become() is None


def test_nothing_that_an_agent_may_break_is_needed_to_reach_the_judge():
    """Neither the model nor what imports it: a tree that cannot start is a crash with a line."""
    program = "import gchat.__main__, gchat.research.driver, sys; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in said if name.startswith(("gchat.", "gaia."))} == {
        "gchat.__main__", "gchat.research", "gchat.research.driver", "gaia.errors", "gaia.extras",
        "gaia.interrupt",
    }  # fmt: skip


def test_who_comes_while_a_tree_is_laid_out_waits_for_it(tmp_path):
    """Two agents that start at once run from one tree, and neither deletes the other's."""
    began, goes_on, made = threading.Event(), threading.Event(), []

    def make():
        made.append(1)
        began.set()
        assert goes_on.wait(10)
        (tmp_path / "tree" / "code").mkdir()

    def lay_out():
        return driver.laid_out_once(tmp_path / "tree", "code", make)

    with ThreadPoolExecutor(2) as both:
        one = both.submit(lay_out)
        assert began.wait(10)
        other = both.submit(lay_out)
        time.sleep(0.2)  # without a lock it would have begun a second one by now
        assert not other.done() and made == [1]
        goes_on.set()
        assert one.result(10) == other.result(10) == tmp_path / "tree" / "code"
    assert made == [1]


def test_a_tree_that_somebody_removed_is_laid_out_again(clone, become):
    tree = Path(become()[1]["PYTHONPATH"])
    shutil.rmtree(tree)
    assert become()[1]["PYTHONPATH"] == str(tree)
    assert (tree / "said.py").exists()


def test_an_unknown_judge_is_one_line(clone, become):
    subprocess.run(["git", "checkout", "-q", "--detach"], check=True)  # no branch, and not listed
    with pytest.raises(ConfigError, match=r"'mian' is no branch or commit; use main$") as refused:
        become("--judge", "mian")
    assert "\n" not in str(refused.value)

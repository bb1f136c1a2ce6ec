"""Verbs that another source tree than this one runs: `gchat research with` and `research run`.

An agent may break any module of the working tree, or change how experiments are judged. So `run`
goes on in the judge's own source tree, laid out once per commit in `runs/driver/`; the working tree
is only what is trained.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gchat.research import patched, worktrees

FOLDER = Path("runs/driver")
JUDGE = "main"
_DRIVEN = "GAIA_RESEARCH_DRIVER"
"""Variable that tells the judge's code that it is."""


def hand_over(verb: str, words: Sequence[str]) -> None:
    """Becomes the process of the other tree.

    For `run` it returns where this is the judge's process, where only help is asked for, and where
    the working tree judges itself.

    Args:
        verb: run or with.
        words: of the verb.

    Raises:
        ConfigError: `with` names no idea or no verb.
        DataError: the working directory is in no clone.
        TreeError: the judge is unknown, or cannot be laid out.
    """
    if verb == "with":
        if words[:1] in (["-h"], ["--help"]):
            print(patched.HELP)
            raise SystemExit(0)
        patched.run(words)
    judge = _judge(words)
    if os.environ.get(_DRIVEN) or {"-h", "--help"} & set(words) or judge == worktrees.WORKING_TREE:
        return
    place = _tree(judge)
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1", _DRIVEN: "1"}
    line = [sys.executable, "-m", "gchat", "research", "run", *words]
    sys.stdout.flush()
    os.execve(line[0], line, environment)


def _judge(words: Sequence[str]) -> str:
    """The value of --judge."""
    judge = JUDGE
    for index, word in enumerate(words):
        if word.startswith("--judge="):
            judge = word.partition("=")[2]
        elif word == "--judge" and index + 1 < len(words):
            judge = words[index + 1]
    return judge


def _tree(judge: str) -> Path:
    """The judge's source tree, made where it is not there yet."""
    root = worktrees.repository()
    folder = FOLDER.resolve() / worktrees.commit_of(root, judge)[:12]
    place = folder / worktrees.folder_name(judge)
    if not (folder / "whole").exists():
        worktrees.make_tree(root, judge, folder, None)
        (folder / "whole").touch()
    return place

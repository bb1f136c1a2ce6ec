"""`gchat research run` goes on in the judge's own source tree; the working tree is only trained.

An agent may break any module of the working tree, or change how experiments are judged. So nothing
but the standard library and the error that `gchat` itself prints is imported here. The judge's tree
is laid out once per commit, in `runs/driver/`.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gaia.errors import ConfigError, DataError

FOLDER = Path("runs/driver")
JUDGE = "main"
_HERE = "."
_DRIVEN = "GAIA_RESEARCH_DRIVER"
"""Variable that tells the judge's code that it is."""


def hand_over(words: Sequence[str]) -> None:
    """Becomes the process of the judge's tree.

    It returns where this is the judge's process, where only help is asked for, and where the
    working tree judges itself.

    Args:
        words: of `gchat research run`.

    Raises:
        ConfigError: the judge is unknown.
        DataError: the working directory is in no clone, or the tree cannot be laid out.
    """
    judge = _judge(words)
    # Behind a text option `-h` is text: only where nothing else is typed does it ask for help.
    if os.environ.get(_DRIVEN) or (words and set(words) <= {"-h", "--help"}) or judge == _HERE:
        return
    place = _tree(judge)
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1", _DRIVEN: "1"}
    line = [sys.executable, "-m", "gchat", "research", "run", *words]
    sys.stdout.flush()
    os.execve(line[0], line, environment)


def laid_out_once(folder: Path, name: str, make: Callable[[], object]) -> Path:
    """The source tree `folder`/`name`, which `make` lays out where it is not there as a whole.

    It lies where people and agents work: one that was edited since is not what its name says, and
    is laid out again. Who comes while another process lays it out waits: two that did so at once
    would delete each other's tree.

    Raises:
        DataError: the folder cannot be made.
    """
    place, whole = folder / name, folder / "whole"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror})", "make room") from None
    with lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, or this process dies
        if not whole.exists() or whole.read_text() != _state(place):
            whole.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            make()
            whole.write_text(_state(place))
    return place


def _state(place: Path) -> str:
    """A hash of a worktree: its commit, what differs from it, and what is new; empty for none."""
    if not place.exists():
        return ""
    digest = hashlib.sha256()
    for words in (
        ("rev-parse", "HEAD"),
        ("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv"),
        ("ls-files", "--others", "--exclude-standard", "-z"),
    ):
        digest.update(_git("-C", str(place), "--no-optional-locks", *words).stdout.encode())
    return digest.hexdigest()


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
    if _git("rev-parse", "--show-toplevel").returncode:
        raise DataError("this folder is in no git clone", "run this inside the clone")
    parsed = _git("rev-parse", "--verify", "--quiet", f"{judge}^{{commit}}")
    if parsed.returncode:
        branches = _git("for-each-ref", "--format=%(refname:short)", "refs/heads").stdout.split()
        raise ConfigError(
            f"--judge: {judge!r} is no branch or commit", f"use {', '.join(branches)}"
        )
    commit = parsed.stdout.strip()
    folder = FOLDER.resolve() / commit[:12]
    place = folder / "code"

    def make() -> None:
        done = _git("worktree", "add", "--detach", "--force", str(place), commit)
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise DataError(
                f"{place} cannot be laid out ({said})", f"remove {folder}, or make room"
            )

    return laid_out_once(folder, place.name, make)


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    quiet = ["-c", "core.hooksPath=/dev/null"]  # nothing of the user's runs at a checkout
    return subprocess.run(
        ["git", *quiet, *words], capture_output=True, text=True, errors="replace", check=False
    )

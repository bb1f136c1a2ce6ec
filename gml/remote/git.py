"""Git on the user's work tree: reads only, and never runs what the tree brings along.

The tree may belong to somebody else (a shared disk, a container's root). git refuses such trees
because their configuration could run programs; we let it read them, with what could run switched
off.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SAFE = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def git_argv(root: Path, *words: str) -> list[str]:
    """The command line of a git command in a work tree."""
    return ["git", *_SAFE, "-C", str(root), *words]


def run_git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs it without a terminal to ask at."""
    return subprocess.run(
        git_argv(root, *words), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def git_says(root: Path, *words: str) -> str:
    """Its output without white space around it, '' where it fails."""
    done = run_git(root, *words)
    return done.stdout.strip() if done.returncode == 0 else ""

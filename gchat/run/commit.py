"""The commit of the code that runs."""

import subprocess
from pathlib import Path


def git_commit() -> str:
    """The commit, with `+` where the tree has changes; empty outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()

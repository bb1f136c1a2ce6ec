"""Facts about a run that take subprocesses and imports to learn: git state, package versions."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata

_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "grain", "orbax-checkpoint", "numpy", "torch",
)  # fmt: skip

GIT_S = 3.0  # for one command: the worker writes nothing meanwhile


def git_state() -> dict[str, str]:
    """Return commit, branch and `dirty` (the tree has changes); {} outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    state = {"commit": commit, "branch": _git("rev-parse", "--abbrev-ref", "HEAD") or ""}
    changes = _git("status", "--porcelain", "-uno")
    return state | {"dirty": "unknown" if changes is None else str(bool(changes)).lower()}


def _git(*args: str) -> str | None:
    """Run git and return its output; None where it fails or takes long (a huge tree)."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=GIT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the packages that decide the numbers."""
    known = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return known


def program() -> str:
    """Return the script's name, without its arguments: people put secrets there."""
    return sys.argv[0].rsplit("/", 1)[-1] if sys.argv else ""

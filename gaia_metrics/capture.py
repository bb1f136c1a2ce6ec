"""What takes looking around to find out about a run: git state, package versions."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata

_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "grain", "orbax-checkpoint", "numpy", "torch",
)  # fmt: skip


def git_state() -> dict[str, str]:
    """Commit, branch and whether the tree has changes; {} outside a repository."""
    state = {
        "commit": _git("rev-parse", "HEAD"),
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
    }
    if not state["commit"]:
        return {}
    return state | {"dirty": str(bool(_git("status", "--porcelain", "-uno"))).lower()}


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Python, the platform, and the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def program() -> str:
    """The script's name. Its arguments are left out: people put secrets there."""
    return sys.argv[0].rsplit("/", 1)[-1] if sys.argv else ""

"""Source trees as git sees them: the commit, and what differs from it.

Nothing that an experiment may have broken is imported: `research run` must reach the judge's code.
"""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gaia.errors import DataError

SOURCES = ("gaia", "gaia_metrics", "gchat", "gml", "pyproject.toml")
"""Paths of a clone that decide a training: notes and sweep files beside them do not."""

DIFF = (
    "-c", "color.ui=false", "diff", "--no-ext-diff", "--no-color", "--src-prefix=a/",
    "--dst-prefix=b/",
)  # fmt: skip
"""Words of a `git diff` that no configuration of the user changes."""


@dataclass(frozen=True)
class Code:
    """A source tree, as it is on disk.

    Attributes:
        path: of the tree.
        commit: full hash of its HEAD.
        changes: hash of what differs from that commit in `SOURCES`; empty for a clean tree.
    """

    path: str
    commit: str
    changes: str = ""

    @property
    def said(self) -> str:
        """The commit for people; a `+` and four letters stand for uncommitted changes."""
        return self.commit[:10] + (f"+{self.changes[:4]}" if self.changes else "")


def code_at(path: str | Path) -> Code:
    """The state of a git work tree.

    Raises:
        DataError: the folder is not one.
    """
    try:
        commit = _git(path, "rev-parse", "HEAD").decode().strip()
        there = ("--", *SOURCES, ":(exclude)*.md")
        differing = _git(path, *DIFF, "HEAD", "--binary", *there)
        listed = _git(path, "ls-files", "--others", "--exclude-standard", "-z", *there)
    except (OSError, subprocess.CalledProcessError):
        raise DataError(f"{str(path)!r} is no git work tree", "run this in a clone") from None
    digest = hashlib.sha256(differing)
    names = sorted(listed.split(b"\0"))
    untracked = [name for name in names if name.endswith((b".py", b".yaml", b".toml"))]
    for name in untracked:
        digest.update(name + b"\0" + (Path(path) / os.fsdecode(name)).read_bytes())
    changed = bool(differing or untracked)
    return Code(str(Path(path).resolve()), commit, digest.hexdigest() if changed else "")


def _git(path: str | Path, *words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(path), *words], capture_output=True, check=True)
    return done.stdout

"""Source trees as git sees them: the commit, and what differs from it.

Nothing that an experiment may have broken is imported: `research run` must reach the judge's code.
"""

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gaia.errors import DataError

SOURCES = ("gaia", "gaia_metrics", "gchat", "gml", "pyproject.toml", "requirements")
"""Paths of a clone that decide a training: notes and sweep files beside them do not, and modules
beside them only where these import them."""

DIFF = (
    "-c", "color.ui=false", "-c", "diff.context=3", "-c", "diff.interHunkContext=0", "diff",
    "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""Words of a `git diff` that no configuration of the user changes."""


@dataclass(frozen=True)
class Code:
    """A source tree, as it is on disk.

    Attributes:
        path: of the tree.
        commit: full hash of its HEAD.
        changes: hash of what differs from that commit in `SOURCES` and in what they import;
            empty for a clean tree.
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
        there = ("--", *SOURCES, *_imported_beside(Path(path)), ":(exclude)*.md")
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


_IMPORTS = re.compile(
    rb"^\s*(?:from|import)\s+([\w.]+(?:\s*,\s*[\w.]+)*)|import_module\(\s*[\"']([\w.]+)",
    re.MULTILINE,
)


def _imported_beside(root: Path) -> list[str]:
    """Top-level modules and packages beside `SOURCES` that differ, and that these import."""
    python = ("-z", "--", "*.py")
    names = _git(root, *DIFF, "HEAD", "--name-only", "--no-renames", *python)
    names += _git(root, "ls-files", "--others", "--exclude-standard", *python)
    tops = {os.fsdecode(name).partition("/")[0].removesuffix(".py") for name in names.split(b"\0")}
    waiting = {top for top in tops - set(SOURCES) if top.isidentifier()}
    imported: list[str] = []
    ahead: list[str] = [*SOURCES] if waiting else []
    while ahead:
        top = ahead.pop()
        for file in [root / f"{top}.py", *(root / top).rglob("*.py")]:
            lines = _IMPORTS.findall(file.read_bytes()) if file.is_file() else []
            words = b",".join(b",".join(pair) for pair in lines).decode(errors="replace")
            new = {word.strip().partition(".")[0] for word in words.split(",")} & waiting
            waiting -= new
            ahead += new
            imported += new
    return [path for top in sorted(imported) for path in (f"{top}.py", top)]


def _git(path: str | Path, *words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(path), *words], capture_output=True, check=True)
    return done.stdout

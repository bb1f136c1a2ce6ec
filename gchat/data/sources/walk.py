"""The files behind `--input`: every file once, whatever links lead to it; others are counted.

Links to folders are followed, once each. Left out, and counted, are hidden files and folders (the
`._a.jsonl` of macOS, `.ipynb_checkpoints`, `.git`), other endings, and what this program makes: of
a curation only its parts are read, of a data set nothing, nor of the folder that is being written.
"""

import collections
import fnmatch
import functools
import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gaia.errors import ConfigError, DataError

_PART = re.compile(r"part-\d{6,}\.jsonl\.zst")
_END = re.compile(r"\)\\[Zz]\Z")  # of fnmatch.translate: `)\Z`, and `)\z` from Python 3.14 on
_FORMATS = {"gaia-tokens": "data set"}  # of a manifest.json


class Walk(NamedTuple):
    """The files of an input."""

    files: list[Path]
    """Sorted by path; each real file once."""
    left_out: dict[str, int]
    """Number of files by reason: "hidden", ".csv", "of a data set"."""

    def sentence(self) -> str:
        """The files left out, for people; empty where there are none."""
        return ", ".join(f"{n:,} {why}" for why, n in sorted(self.left_out.items()))


def walk(given: str, ending: Callable[[Path], str], endings: tuple[str, ...],
         exclude: Path | None = None) -> Walk:  # fmt: skip
    """Lists the files behind a file, folder or glob; a name with brackets is a file if it exists.

    Args:
        given: as the user wrote it.
        ending: says which ending of a file counts.
        endings: those that are read.
        exclude: a folder inside that is not part of it, because results are written there.

    Raises:
        DataError: nothing there that could be read.
        ConfigError: a file of another kind was named, or the input lies in the excluded folder.
    """
    path = Path(given).expanduser()
    out = None if exclude is None else exclude.resolve()
    if (
        out is not None
        and path.exists()
        and (path.resolve() == out or out in path.resolve().parents)
    ):
        raise ConfigError(
            f"input = {given!r} lies in the folder that is written", "choose another --out"
        )
    left_out: collections.Counter[str] = collections.Counter()
    if path.is_file():
        candidates = [path]
    elif path.is_dir():
        candidates = list(_below(path, out, left_out))
    else:
        candidates = _matching(str(path), out, left_out)
    wanted = [file for file in candidates if ending(file) in endings]
    if not wanted and (other := next((f for f in candidates if not path.is_dir()), None)):
        raise ConfigError(
            f"input = {str(other)!r} has the ending {ending(other)!r}",
            f"use files that end in {', '.join(endings)}",
        )
    for file in candidates:
        if ending(file) not in endings:
            left_out["".join(file.suffixes[-2:]).lower() or "without an ending"] += 1
    if not wanted:
        what = f"a folder without {', '.join(endings)} files" if path.is_dir() else "not there"
        raise DataError(f"input = {given!r} is {what}", "check the path")
    return Walk(_once(wanted), dict(left_out))


def _once(files: list[Path]) -> list[Path]:
    """The shortest path of each real file, sorted."""
    real: dict[str, Path] = {}
    for file in sorted(files, key=lambda f: (len(f.parts), f)):
        real.setdefault(os.path.realpath(file), file)
    return sorted(real.values())


def _below(top: Path, out: Path | None, left_out: collections.Counter[str]) -> Iterator[Path]:
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen or (out is not None and Path(real) == out):
            continue
        seen.add(real)
        kind = made_here(folder)
        folders = []
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            here = folder / entry.name
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.is_dir():
                folders.append(here)
            elif entry.is_file():
                if kind is not None and not (kind == "curation" and _PART.fullmatch(entry.name)):
                    left_out[f"of a {kind}"] += 1
                else:
                    yield here
        waiting += reversed(folders)


def made_here(folder: Path) -> str | None:
    """ "data set" or "curation" where this program made a folder, finished or not; else None."""
    for work, kind in ((".prepare", "data set"), (".curate", "curation")):
        if (folder / work / "work.json").is_file():
            return f"{kind} that is not finished"
    if (folder / "manifest.json").is_file() and (
        kind := _FORMATS.get(_field(folder / "manifest.json", "format") or "")
    ):
        return kind
    if _field(folder / "report.json", "parameters") and (folder / "report.md").is_file():
        return "curation"
    return None


def _field(path: Path, name: str) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return value if isinstance(value, str) else "yes" if value else None


def _matching(pattern: str, out: Path | None, left_out: collections.Counter[str]) -> list[Path]:
    """Files that a glob matches; `**` walks each folder once instead of following every link."""
    parts = Path(pattern).parts
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), None)
    if magic is None:
        return []
    if "**" not in parts:
        named = [Path(name) for name in glob.glob(pattern)]
        return [file for file in named if file.is_file()]
    base = Path(*parts[:magic]) if magic else Path(".")
    if not base.is_dir():
        return []
    regex = re.compile(_regex(parts[magic:]))
    return [
        f for f in _below(base, out, left_out) if regex.fullmatch(f.relative_to(base).as_posix())
    ]


def _regex(parts: tuple[str, ...]) -> str:
    def one(part: str) -> str:
        if part == "**":
            return "(?:[^/]+/)*"
        whole = fnmatch.translate(part).replace(".*", "[^/]*")
        return _END.sub(")/", whole)

    return functools.reduce(lambda text, part: text + one(part), parts, "").removesuffix("/")

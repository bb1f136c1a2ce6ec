"""Files that a task is read from: a file, a folder, or a data set of the hub.

    data/gsm8k/test.jsonl                    a file, whatever the split
    data/mmlu                                a folder: its files of the split
    hf://openai/gsm8k/main@COMMIT            the hub; the pinned data set where nothing is given

What comes from the hub is pinned to a commit, compared with its published checksum and kept below
$GAIA_HOME/hub (`gchat.data.sources.hub`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.data.sources import files, hub
from gchat.tasks.rows import ENDINGS

_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+?)(?:/([^@]+?))?/?(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Place:
    """Home of a task's data, and its names in it.

    Attributes:
        repository: of the hub.
        commit: that is read where nothing else is asked for.
        folder: of the repository, with its files.
        splits: file names of a split begin with this; by split.
        files: names that stand for the whole task in a folder of files, without endings.
    """

    repository: str = ""
    commit: str = ""
    folder: str = ""
    splits: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()

    def prefix(self, split: str) -> str:
        """How names of a split's files begin."""
        return dict(self.splits).get(split, split)


def find(name: str, place: Place, source: str | None, split: str) -> list[Path]:
    """The files of a task.

    Args:
        name: of the task, for messages.
        place: its home.
        source: file, folder or address of the hub; its home when left out.
        split: "train", "test", …

    Raises:
        ConfigError: there is no home and no source, or the address is none.
        DataError: nothing is there, or the hub does not answer.
    """
    if source is None:
        if not place.repository:
            raise ConfigError(f"the task {name} has no source", f"give a file: {name}=FILE")
        return _of_hub(place.repository, place.commit, place.folder, place.prefix(split))
    if source.startswith("hf://"):
        match = _ADDRESS.fullmatch(source)
        if match is None:
            raise ConfigError(f"source {source!r} is no data set of the hub", "use hf://ORG/NAME")
        commit = hub.pinned(match[1], match[3] or "main")
        return _of_hub(match[1], commit, match[2] or place.folder, place.prefix(split))
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"source {source!r} of the task {name} does not exist", "check the path")
    return _of_folder(name, path, place, split)


def _of_folder(name: str, folder: Path, place: Place, split: str) -> list[Path]:
    if place.folder and (folder / place.folder).is_dir():
        folder = folder / place.folder
    there = sorted(p for p in folder.rglob("*") if p.is_file() and files.kind(p) in ENDINGS)
    prefix = re.escape(place.prefix(split))
    of_split = re.compile(rf"(?:.*[_-])?{prefix}(?:[_.-].*)?")
    chosen = (
        [path for path in there if _stem(path) in place.files]
        or [path for path in there if split in path.relative_to(folder).parts[:-1]]
        or [path for path in there if of_split.fullmatch(_stem(path))]
    )
    if not chosen:
        some = ", ".join(files.shown(path.name) for path in there[:5]) or "no task file"
        raise DataError(
            f"{str(folder)!r} holds no file of the split {split!r} of {name} (there is {some})",
            f"name the file itself: {name}=FILE",
        )
    return chosen


def _stem(path: Path) -> str:
    """The name without `.jsonl`, `.jsonl.gz` and the like."""
    return path.name[: path.name.lower().rindex(files.kind(path))]


def _of_hub(repository: str, commit: str, inside: str, prefix: str) -> list[Path]:
    folder = storage.home() / "hub" / repository.replace("/", "--") / commit
    names = hub.listed(repository, commit, inside, folder)
    chosen = [n for n in names if re.match(rf"{re.escape(prefix)}[-_.]", n.rpartition("/")[2])]
    if not chosen:
        raise DataError(
            f"{repository}@{commit[:12]} {inside or '/'} has no file of {prefix!r}",
            "name another split",
        )
    return [hub.fetch(repository, name, commit, folder) for name in chosen]

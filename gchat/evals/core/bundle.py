"""The task files of CORE: found in a folder, or downloaded, checked, and read.

DIR/eval_data/CATEGORY/TASK.jsonl       (as nanochat's eval_bundle.zip unpacks; DIR may also be
                                         eval_data itself, or the folder above eval_bundle)
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.evals.core import download
from gchat.evals.core.tasks import TASKS, Task

_FOLDERS = ("eval_data", "eval_bundle/eval_data", ".")

Item = Mapping[str, Any]
"""A line of a task file."""


@dataclass(frozen=True)
class Bundle:
    """Items of tasks."""

    folder: str
    items: Mapping[str, Sequence[Item]]
    """Items by the names of tasks, in the order of the file."""
    tasks: tuple[Task, ...]
    """Tasks whose files are there, in the order of the table."""
    missing: tuple[str, ...]
    """Tasks whose files are not there."""
    changed: tuple[str, ...]
    """Tasks whose files are not the published ones."""
    digest: str
    """First 8 hexadecimal digits of a hash over the files."""


def read(folder: str | None, tasks: Sequence[Task], *, must: bool = False) -> Bundle:
    """Reads the files of these tasks.

    Args:
        folder: of the bundle; the published one, downloaded once, where it is left out.
        tasks: wanted.
        must: refuse a folder that lacks one of them.

    Raises:
        ConfigError: the folder holds no task file, or lacks one that must be there.
        DataError: a file is damaged (it names the line), or cannot be downloaded.
    """
    place = folder if folder is not None else str(download.published())
    root = _root(place)
    items: dict[str, Sequence[Item]] = {}
    missing: list[str] = []
    changed: list[str] = []
    digest = hashlib.sha256()
    # The digest names the whole folder, so that results of some tasks serve an evaluation of all.
    for task in TASKS:
        path = root / f"{task.file}.jsonl"
        wanted = task in tasks
        if not path.is_file():
            missing += [task.name] * wanted
            continue
        data = path.read_bytes()
        blob = download.git_blob(data)
        if folder is None and blob != task.git_blob:
            raise DataError(
                f"{str(path)!r} is not the published file any more",
                f"remove {place!r}: it is downloaded anew",
            )
        digest.update(f"{task.name} {blob}\n".encode())
        if wanted:
            changed += [task.name] * (blob != task.git_blob)
            items[task.name] = _items(path, data, task)
    there = tuple(task for task in tasks if task.name in items)
    if missing and (must or not there):
        wanted = next(task.file for task in tasks if task.name == missing[0])
        raise ConfigError(
            f"the bundle in {place!r} has no file for {', '.join(missing)}",
            f"add eval_data/{wanted}.jsonl, or leave it out of --tasks",
        )
    return Bundle(place, items, there, tuple(missing), tuple(changed), digest.hexdigest()[:8])


def _root(place: str) -> Path:
    for name in _FOLDERS:
        root = Path(place) / name
        if any((root / f"{task.file}.jsonl").is_file() for task in TASKS):
            return root
    raise ConfigError(
        f"{place!r} holds no task file of CORE (such as eval_data/{TASKS[0].file}.jsonl)",
        "give --bundle the folder that eval_bundle.zip unpacks to",
    )


def _items(path: Path, data: bytes, task: Task) -> list[Item]:
    check = {
        "multiple_choice": _check_choices,
        "schema": _check_options,
        "language_modeling": _check_continuation,
    }[task.kind]
    items: list[Item] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError is one
            raise _damaged(path, number, f"it is not JSON ({error})") from None
        if not isinstance(item, dict):
            raise _damaged(path, number, "it is no JSON object")
        if problem := check(item):
            raise _damaged(path, number, problem)
        items.append(item)
    if not items:
        raise DataError(f"{str(path)!r} holds no items", "download the bundle again")
    return items


def _damaged(path: Path, number: int, problem: str) -> DataError:
    return DataError(f"{path}, line {number}: {problem}", "download the bundle again")


def _check_choices(item: Item) -> str | None:
    return _check_text(item, "query") or _check_list(item, "choices")


def _check_options(item: Item) -> str | None:
    return _check_text(item, "continuation") or _check_list(item, "context_options")


def _check_continuation(item: Item) -> str | None:
    return _check_text(item, "context") or _check_text(item, "continuation")


def _check_text(item: Item, key: str) -> str | None:
    value = item.get(key)
    if not isinstance(value, str):
        return f"{key!r} is {_short(value)}, not a text"
    if key == "continuation" and not value.strip():
        return f"{key!r} is empty"
    return None


def _check_list(item: Item, key: str) -> str | None:
    values, gold = item.get(key), item.get("gold")
    texts = isinstance(values, list) and all(isinstance(value, str) for value in values)
    if not isinstance(values, list) or not texts or len(values) < 2:
        return f"{key!r} is {_short(values)}, not a list of two texts or more"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(values):
        return f"'gold' is {_short(gold)}, not the index of one of {len(values)} {key}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

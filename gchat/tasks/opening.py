"""Tasks by name.

open_task("gsm8k", "train")                          from the hub, pinned
open_task("mmlu", source="data/mmlu", limit=100)     from files, the first 100 after a shuffle
named("gsm8k=data/gsm8k")                            a name as people type it
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from gaia.errors import ConfigError, DataError
from gchat.conversation import Message
from gchat.ranges import MAX_SEED
from gchat.tasks import arc, choices, conversations, custom, gsm8k, humaneval, made, mmlu
from gchat.tasks.places import Place, find
from gchat.tasks.rows import Row, Rows
from gchat.tasks.task import Item, Kind, Picked, Task

SEED = 1337
JSON = "json"
"""Name of a task that is a file of one's own: `json:PATH`."""
_CUSTOM_SPLIT = "test"
"""Split of such a task's folder that is read, whichever is asked for."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of a task that is made of rows."""

    kind: Kind
    baseline: float
    item: Callable[[Row], Item]
    grade: Callable[[Item, Message], float] | None = None
    place: Place = Place()  # noqa: RUF009 - frozen
    header: tuple[str, ...] = ()
    """Columns of .csv files that name none."""
    check: Callable[[], None] = lambda: None
    """Raises GaiaError where answers cannot be graded on this machine."""


@dataclass(frozen=True)
class Maker:
    """Recipe of a task that is made of nothing but a seed."""

    make: Callable[[random.Random, str, str], Item]
    grade: Callable[[Item, Message], float]


TASKS: dict[str, Recipe | Maker] = {
    "arc_easy": Recipe("choice", 0.25, arc.item, choices.grade, arc.EASY),
    "arc_challenge": Recipe("choice", 0.25, arc.item, choices.grade, arc.CHALLENGE),
    "mmlu": Recipe("choice", 0.25, mmlu.item, choices.grade, mmlu.PLACE, mmlu.HEADER),
    "gsm8k": Recipe("generate", 0.0, gsm8k.item, gsm8k.grade, gsm8k.PLACE),
    "gsm8k_flexible": Recipe("generate", 0.0, gsm8k.item, gsm8k.grade_flexible, gsm8k.PLACE),
    "humaneval": Recipe(
        "generate", 0.0, humaneval.item, humaneval.grade, humaneval.PLACE, check=humaneval.check
    ),
    "smoltalk": Recipe("text", 0.0, conversations.item, None, conversations.SMOLTALK),
    "identity": Recipe("text", 0.0, conversations.item, None, conversations.IDENTITY),
    "spelling": Maker(made.spelling, gsm8k.grade),
    "letters": Maker(made.letters, made.grade_letters),
    "sums": Maker(made.sums, gsm8k.grade),
}


def open_task(
    name: str,
    split: str = "test",
    source: str | None = None,
    limit: int | None = None,
    seed: int = SEED,
) -> Task:
    """A task, its items shuffled by the seed.

    Args:
        name: of TASKS, or `json:PATH`.
        split: "train", "test" or another one that the data has.
        source: file, folder or `hf://ORG/NAME[/FOLDER][@REVISION]`; the hub's pinned data set when
            left out. All rows of files of one's own are read once: a wrong one is told now.
        limit: the first so many after the shuffle; for tasks that are made, their number.
        seed: of the shuffle.

    Raises:
        ConfigError: there is no such task, or an argument cannot work.
        DataError: nothing is there, or a row lacks a field: file, line and field are named.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} of the task {name}", "use 1 or more")
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed = {seed} of the task {name}", f"use 0 to {MAX_SEED}")
    if name.startswith(f"{JSON}:"):
        return _custom(name, source, limit, seed)
    recipe = TASKS.get(name)
    if recipe is None:
        nearest = get_close_matches(name, TASKS, n=1)
        known = f"did you mean {nearest[0]}?" if nearest else f"use one of {', '.join(TASKS)}"
        raise ConfigError(f"there is no task {name!r}", f"{known}, or {JSON}:PATH")
    if isinstance(recipe, Maker):
        if source is not None:
            raise ConfigError(f"the task {name} reads no source ({source!r})", "leave it out")
        return Task(name, "generate", 0.0, made.Made(recipe.make, split, limit, seed), recipe.grade)
    rows = Rows(find(name, recipe.place, source, split), recipe.header)
    own = source is not None and not source.startswith("hf://")
    items = _picked(rows, recipe.item, limit, seed, check=own)
    return Task(name, recipe.kind, recipe.baseline, items, recipe.grade, recipe.check)


def named(text: str, split: str = "test", limit: int | None = None, seed: int = SEED) -> Task:
    """A task as people type it: NAME, NAME=SOURCE or json:PATH. See `open_task`."""
    name, source = _typed(text)
    return open_task(name, split, source, limit, seed)


def files_of(text: str, split: str = "test") -> list[Path]:
    """The files behind a task as people type it; none of a task that is made here.

    Raises:
        ConfigError: the name has no source behind =.
        DataError: nothing is there.
    """
    name, source = _typed(text)
    recipe = TASKS.get(name)
    if name.startswith(f"{JSON}:"):
        return find(name, Place(), name.partition(":")[2], _CUSTOM_SPLIT)
    return find(name, recipe.place, source, split) if isinstance(recipe, Recipe) else []


def origin(text: str, split: str = "test") -> frozenset[str]:
    """All that a task's items are read from: two tasks with a part in common share items.

    These are its files, whatever links lead to them; of a task that is made, its name and split.

    Raises:
        ConfigError: the name has no source behind =.
        DataError: nothing is there.
    """
    files = frozenset(str(path.resolve()) for path in files_of(text, split))
    return files or frozenset([f"{text} {split}"])


def _typed(text: str) -> tuple[str, str | None]:
    """Name and source of a task as people type it."""
    name, equals, source = text.partition("=")
    if name.startswith(f"{JSON}:"):
        return text, None  # its path may hold =
    if equals and not source:
        raise ConfigError(f"{text!r} has no source behind =", "give a file, a folder or hf://…")
    return name, source or None


def _custom(name: str, source: str | None, limit: int | None, seed: int) -> Task:
    path = name.partition(":")[2]
    if source is not None or not path:
        raise ConfigError(f"the task {name!r} has two sources or none", f"write {JSON}:PATH")
    rows = Rows(find(name, Place(), path, _CUSTOM_SPLIT))
    kind = custom.kind(rows[0])

    def item(row: Row) -> Item:
        if custom.kind(row) != kind:
            raise DataError(
                f"{row.where}: it is of kind {custom.kind(row)!r}, the first row of kind {kind!r}",
                "give all rows the same fields: choices, or question and answer, or messages",
            )
        return custom.item(row)

    items = _picked(rows, item, limit, seed, check=True)
    chance = 0.0
    if kind == "choice":
        chance = sum(1 / len(items[i].choices) for i in range(len(items))) / len(items)
    return Task(name, kind, chance, items, None if kind == "text" else custom.grade)


class _RowItems:
    """Items of rows."""

    def __init__(self, rows: Rows, item: Callable[[Row], Item]) -> None:
        self._rows, self._item = rows, item

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        return self._item(self._rows[index])


def _picked(
    rows: Rows, item: Callable[[Row], Item], limit: int | None, seed: int, *, check: bool
) -> Picked:
    items = _RowItems(rows, item)
    if check:
        for index in range(len(items)):
            items[index]
    places = list(range(len(items)))
    random.Random(seed).shuffle(places)
    return Picked(items, places[:limit])

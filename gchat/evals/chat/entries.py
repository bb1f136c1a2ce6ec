"""Items of the tasks that are evaluated, and the five of ChatCORE."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from gaia.errors import ConfigError
from gchat.tasks.opening import SEED, named
from gchat.tasks.task import Item, Task

CHATCORE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
"""Tasks of ChatCORE, as nanochat has them (scripts/chat_eval.py at 92d63d4)."""


class Entry(NamedTuple):
    """One item to evaluate."""

    task: Task
    item: Item

    @property
    def key(self) -> tuple[str, str]:
        """Names of the task and the item."""
        return self.task.name, self.item.id


def opened(
    names: Sequence[str], limit: int | None, written: int | None = None, split: str = "test"
) -> list[Task]:
    """Tasks to evaluate.

    Args:
        names: NAME or NAME=SOURCE of each, as `gchat.tasks.opening.named` takes them.
        limit: items of each task; all when left out.
        written: items of tasks whose answers are written; `limit` when left out.
        split: of the data.

    Raises:
        GaiaError: a task cannot be opened, has no grade, cannot be graded here, or comes twice.
    """
    tasks: dict[str, Task] = {}
    for text in names:
        task = named(text, split, limit, SEED)
        if task.kind == "text":
            raise ConfigError(
                f"answers to {task.name} have no grade", "evaluate a task of questions"
            )
        if task.name in tasks:
            raise ConfigError(f"the task {task.name} is named twice", "name it once")
        if task.kind == "generate" and written is not None and len(task) > written:
            task = task.first(written)
        task.ready()
        tasks[task.name] = task
    if not tasks:
        raise ConfigError("no task is named", f"name some: {' '.join(CHATCORE)}")
    return list(tasks.values())


def entries(tasks: Sequence[Task]) -> list[Entry]:
    """All items, those that are scored first.

    Raises:
        DataError: an item is wrong, or two have one name.
    """
    made: list[Entry] = []
    for task in sorted(tasks, key=lambda task: task.kind != "choice"):
        made += [Entry(task, task[i]) for i in range(len(task))]
    return made


def digest(task: Task) -> str:
    """Name of a task's items by their content."""
    items = [asdict(task[i]) for i in range(len(task))]
    text = json.dumps([task.name, items], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

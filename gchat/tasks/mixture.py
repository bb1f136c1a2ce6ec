"""Conversations of several tasks in one shuffled sequence, to train on."""

import math
import random
from collections.abc import Sequence

from gaia.errors import ConfigError
from gchat.conversation import Conversation
from gchat.ranges import MAX_SEED
from gchat.tasks.opening import SEED
from gchat.tasks.task import Task


class Mixture:
    """Conversations of tasks, the same for the same tasks and seed.

    Args:
        tasks: each with the number of times that its items occur. Of a part of a time (2.5) the
            items are the task's first.
        seed: of the shuffle of all.

    Raises:
        ConfigError: there is no task, or a number is not above 0.
    """

    def __init__(self, tasks: Sequence[tuple[Task, float]], seed: int = SEED) -> None:
        if not tasks:
            raise ConfigError("the mixture has no task", "name one")
        if not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"seed = {seed} of the mixture", f"use 0 to {MAX_SEED}")
        self._tasks = [task for task, _ in tasks]
        self._places: list[tuple[int, int]] = []
        for number, (task, epochs) in enumerate(tasks):
            if not 0 < epochs < math.inf:
                raise ConfigError(
                    f"the mixture takes {task.name} {epochs} times", "use a number above 0"
                )
            count = max(1, round(len(task) * epochs))
            self._places += [(number, i % len(task)) for i in range(count)]
        random.Random(seed).shuffle(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Conversation:
        number, place = self._places[index]
        task = self._tasks[number]
        return task.conversation(task[place])

"""A task: questions with their answers, and how an answer is graded.

    task = open_task("gsm8k", source="data/gsm8k")      gchat.tasks.opening
    item = task[0]
    task.conversation(item)                             to train on
    task.grade(item, "… #### 18")                       1.0 for right, 0.0 for wrong

One object serves the mixtures of midtraining and SFT, ChatCORE, the rewards of RL and judging.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gaia.errors import ConfigError
from gchat.conversation import Conversation, Message

Kind = Literal["choice", "generate", "text"]
"""Graded by the choice that is likeliest; graded by the text that is written; not graded."""


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    """Name within the task: the row of its data, or the name that the data gives."""
    question: tuple[Message, ...]
    """All messages before the answer."""
    answer: Message | None
    """Reference answer, to train on."""
    choices: tuple[str, ...] = ()
    """Texts of which the answer to a "choice" item is one: the letters, as a rule."""
    gold: int | None = None
    """Index of the right choice."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that grading needs, and names for tables."""


class Items(Protocol):
    """Items by their place; made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item:
        """The item at a place.

        Raises:
            IndexError: there is none.
        """
        ...


class Task:
    """Items and their grades.

    Args:
        name: as `open_task` takes it.
        kind: of the items.
        baseline: accuracy of guessing.
        items: in the order in which they are asked.
        grade: gives 0 to 1 for an item and an answer; None where answers have no grade.
        check: raises GaiaError where answers cannot be graded on this machine.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        baseline: float,
        items: Items,
        grade: Callable[[Item, Message], float] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.baseline = name, baseline
        self.kind: Kind = kind
        self._items, self._grade, self._check = items, grade, check

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]

    def conversation(self, item: Item) -> Conversation:
        """The question with its reference answer.

        Raises:
            ConfigError: the item has no reference answer.
        """
        if item.answer is None:
            raise ConfigError(
                f"item {item.id} of {self.name} has no reference answer", "train on another task"
            )
        return Conversation((*item.question, item.answer), item.meta.get("unlearned", ()))

    def grade(self, item: Item, answer: str | Message) -> float:
        """0 for a wrong answer to 1 for a right one.

        Raises:
            ConfigError: answers to this task have no grade.
            SandboxError: the answer is a program, and this machine cannot contain one.
        """
        if self._grade is None:
            raise ConfigError(f"answers to {self.name} have no grade", "use it for training only")
        said = answer if isinstance(answer, Message) else Message("assistant", answer)
        return self._grade(item, said)

    def ready(self) -> None:
        """Raises GaiaError where answers cannot be graded on this machine."""
        self._check()

    def first(self, count: int) -> "Task":
        """The same task with its first items alone."""
        items = Picked(self._items, range(min(count, len(self))))
        return Task(self.name, self.kind, self.baseline, items, self._grade, self._check)

    def centred(self, accuracy: float) -> float:
        """(accuracy - baseline) / (1 - baseline): 0 for guessing, 1 for all right."""
        return (accuracy - self.baseline) / (1 - self.baseline)


def user(text: str) -> tuple[Message, ...]:
    """A question of one message."""
    return (Message("user", text),)


def assistant(text: str) -> Message:
    """An answer without calls of tools."""
    return Message("assistant", text)


class Picked:
    """Items of some places of a longer sequence.

    Args:
        items: all of them.
        places: of those that are picked, in their order.
    """

    def __init__(self, items: Items, places: Sequence[int]) -> None:
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Item:
        return self._items[self._places[index]]

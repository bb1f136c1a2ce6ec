"""The evaluation itself: items of all tasks in one mixture, scored batch by batch.

Tasks are mixed in proportion, item by item: rows of long prompts have short ones in their gaps, the
time left is even, and what is done at any moment is a smaller evaluation of all tasks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gaia.errors import ConfigError
from gchat.evals.core import questions
from gchat.evals.core.bundle import Bundle, Item
from gchat.evals.core.tasks import Task
from gchat.evals.counts import Count
from gchat.evals.results import Record
from gchat.score import LogLikelihood
from gchat.score_rows import Pair
from gchat.tokenizer import Tokenizer

Stream = Callable[[Iterable[Pair]], Iterator[list[tuple[int, LogLikelihood]]]]
"""Scores pairs, as `gchat.score.Scorer.stream` does with its parameters bound."""

Done = Mapping[str, Mapping[int, bool]]
"""Right or wrong, by task and item."""


class Result(NamedTuple):
    """An item's outcome, as it is kept."""

    task: str
    item: int
    """Place among the task's shuffled items."""
    correct: bool
    chosen: int | None
    gold: int | None
    scores: tuple[tuple[float, int], ...]
    """(nats, tokens) of each choice."""

    def record(self) -> Record:
        """The outcome as JSON holds it."""
        return {
            "task": self.task,
            "item": self.item,
            "correct": self.correct,
            "chosen": self.chosen,
            "gold": self.gold,
            "nats": [nats for nats, _ in self.scores],
            "tokens": [tokens for _, tokens in self.scores],
        }


def take(done: dict[str, dict[int, bool]], record: Record) -> None:
    """Notes an outcome that was kept in `done`."""
    done.setdefault(record["task"], {})[record["item"]] = record["correct"]


class Progress(NamedTuple):
    """State of an evaluation after a batch."""

    items: int
    of: int
    seconds_left: float
    counts: Mapping[str, Count]


@dataclass
class _Open:
    """An item whose pairs are not all scored yet."""

    task: Task
    index: int
    item: Item
    first: int
    """Number of its first pair."""
    missing: int
    scores: dict[int, LogLikelihood] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Items to evaluate.

    Attributes:
        order: (task, item) in the order of the mixture.
        pools: items that examples are drawn from, by task.
    """

    order: Sequence[tuple[Task, int]]
    pools: Mapping[str, Sequence[Item]]


def plan(bundle: Bundle, limit: int | None) -> Plan:
    """The items of a bundle's tasks, at most `limit` of each.

    Raises:
        ConfigError: the limit is not positive, or a task has too few items for its examples.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"{limit} items a task", "evaluate at least 1, or leave it out for all")
    places: list[tuple[float, int, Task, int]] = []
    pools: dict[str, Sequence[Item]] = {}
    for number, task in enumerate(bundle.tasks):
        pools[task.name], count = questions.subset(task, bundle.items[task.name], limit)
        places += [((i + 0.5) / count, number, task, i) for i in range(count)]
    places.sort(key=lambda place: place[:2])
    return Plan([(task, i) for _, _, task, i in places], pools)


def evaluate(
    todo: Plan,
    tokenizer: Tokenizer,
    stream: Stream,
    *,
    done: Done | None = None,
    record: Callable[[list[Result]], None] = lambda results: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Count]:
    """Scores what is to do and not done; returns the counts of all tasks.

    Args:
        todo: from `plan`.
        tokenizer: of the model.
        stream: scores pairs.
        done: outcomes of earlier attempts.
        record: called with the items that a batch has finished.
        progress: called after each batch.
    """
    done = done or {}
    left = [(t, i) for t, i in todo.order if i not in done.get(t.name, {})]
    counts = {task.name: Count(0, 0) for task, _ in todo.order}
    for task, index in todo.order:
        if index in done.get(task.name, {}):
            _add(counts, task.name, done[task.name][index])
    work, items = _Work(left, todo.pools), _Items()

    def keep() -> None:
        results = [_result(opened) for opened in items.finished()]
        for result in results:
            _add(counts, result.task, result.correct)
            work.did(result.task)
        record(results)

    for batch in stream(items.pairs(left, todo.pools, tokenizer)):
        items.scored(batch)
        keep()
        progress(work.state(len(todo.order), counts))
    keep()
    return counts


class _Items:
    """Holds the items that are being scored; a thread of the scorer takes their pairs."""

    def __init__(self) -> None:
        self._by_pair: dict[int, _Open] = {}
        self._finished: list[_Open] = []

    def pairs(
        self,
        left: Sequence[tuple[Task, int]],
        pools: Mapping[str, Sequence[Item]],
        tokenizer: Tokenizer,
    ) -> Iterator[Pair]:
        """The pairs of items, one item after the other."""
        number = 0
        for task, index in left:
            pool = pools[task.name]
            item = pool[index]
            texts = questions.prompts(task, item, questions.examples(task, pool, index))
            made = questions.pairs(task, texts, tokenizer)
            opened = _Open(task, index, item, number, len(made))
            if not made:
                self._finished.append(opened)
            for n in range(number, number + len(made)):
                self._by_pair[n] = opened
            number += len(made)
            yield from made

    def scored(self, batch: Sequence[tuple[int, LogLikelihood]]) -> None:
        """Takes the scores of pairs, by their numbers."""
        for number, score in batch:
            opened = self._by_pair.pop(number)
            opened.scores[number - opened.first] = score
            opened.missing -= 1
            if not opened.missing:
                self._finished.append(opened)

    def finished(self) -> list[_Open]:
        """The items whose pairs have all been scored since the last call."""
        taken = self._finished[:]
        del self._finished[: len(taken)]  # the other thread may have added to it
        return taken


def _add(counts: dict[str, Count], task: str, correct: bool) -> None:
    right, of = counts[task]
    counts[task] = Count(right + correct, of + 1)


def _result(opened: _Open) -> Result:
    scores = [opened.scores[n] for n in sorted(opened.scores)]
    answer = questions.judge(opened.task, opened.item, scores)
    kept = tuple((round(score.sum, 5), len(score.per_token)) for score in scores)
    gold = opened.item.get("gold") if opened.task.kind != "language_modeling" else None
    return Result(opened.task.name, opened.index, answer.correct, answer.chosen, gold, kept)


class _Work:
    """Reckons the time left by the characters of the items that are done and to do."""

    def __init__(
        self, left: Sequence[tuple[Task, int]], pools: Mapping[str, Sequence[Item]]
    ) -> None:
        tasks = {task.name: task for task, _ in left}
        self._cost = {n: questions.cost(task, pools[n]) for n, task in tasks.items()}
        self._left = sum(self._cost[task.name] for task, _ in left)
        self._done, self._items = 0.0, len(left)
        self._begun = time.perf_counter()

    def did(self, task: str) -> None:
        self._done += self._cost[task]
        self._items -= 1

    def state(self, of: int, counts: Mapping[str, Count]) -> Progress:
        seconds = time.perf_counter() - self._begun
        rest = seconds * (self._left - self._done) / self._done if self._done else float("inf")
        return Progress(of - self._items, of, rest, counts)

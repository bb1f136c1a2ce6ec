"""Items of CORE as token sequences to score, and what their scores say.

    multiple choice      QUERY + delimiter + CHOICE; the choice with the lowest mean loss, counted
                         from where the choices' tokens first differ
    schema               CONTEXT + delimiter + continuation; the context after which the tokens that
                         all end with have the lowest mean loss
    language modelling   CONTEXT + delimiter + continuation; right if each token of the continuation
                         is the most likely one

Solved examples go before, each followed by an empty line. Items are shuffled by Random(1337), of
which a limited evaluation takes the first; the examples of item i are drawn by Random(1234 + i)
from the others. Seeds, templates and rules are those of nanochat (nanochat/core_eval.py and
scripts/base_eval.py at 92d63d4), whose published scores are so computed.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gaia.errors import ConfigError
from gchat.evals.core.bundle import Item
from gchat.evals.core.tasks import Task
from gchat.score import LogLikelihood
from gchat.score_rows import Pair
from gchat.tokenizer import Tokenizer

SHUFFLE_SEED = 1337
EXAMPLE_SEED = 1234


class Answer(NamedTuple):
    """Outcome of an item."""

    correct: bool
    chosen: int | None
    """The choice, or None for language modelling."""


def subset(task: Task, items: Sequence[Item], limit: int | None) -> tuple[list[Item], int]:
    """(items that examples are drawn from, how many of the first are evaluated).

    With a limit nothing else is read, so that few items cost little; a limit that leaves too few
    examples takes just enough of the others.

    Raises:
        ConfigError: the task has fewer items than its examples need.
    """
    shuffled = list(items)
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    if len(shuffled) <= task.shots:
        raise ConfigError(
            f"{task.name} has {len(shuffled)} items and needs {task.shots} examples beside each",
            "use the whole task file",
        )
    count = len(shuffled) if limit is None else min(limit, len(shuffled))
    return shuffled[: max(count, task.shots + 1)], count


def examples(task: Task, pool: Sequence[Item], index: int) -> list[Item]:
    """The solved examples before item `index` of the pool."""
    if not task.shots:
        return []
    others = random.Random(EXAMPLE_SEED + index).sample(range(len(pool) - 1), task.shots)
    return [pool[i + (i >= index)] for i in others]


def prompts(task: Task, item: Item, shown: Sequence[Item]) -> list[str]:
    """The texts to score; for language modelling the prompt alone, then with its continuation."""
    before = "".join(_solved(task, example) + "\n\n" for example in shown)
    if task.kind == "multiple_choice":
        return [before + item["query"] + task.delimiter + choice for choice in item["choices"]]
    if task.kind == "schema":
        end = task.delimiter + item["continuation"]
        return [before + context + end for context in item["context_options"]]
    asked = before + item["context"].strip() + task.delimiter
    # Without the space at its end, which belongs to the first token of the continuation.
    return [asked.strip(), asked + item["continuation"]]


def _solved(task: Task, item: Item) -> str:
    if task.kind == "multiple_choice":
        return item["query"] + task.delimiter + item["choices"][item["gold"]]
    if task.kind == "schema":
        return item["context_options"][item["gold"]] + task.delimiter + item["continuation"]
    return item["context"].strip() + task.delimiter + item["continuation"]


def pairs(task: Task, texts: Sequence[str], tokenizer: Tokenizer) -> list[Pair]:
    """Contexts and continuations of the texts of an item, as ids, BOS first."""
    bos = np.array([tokenizer.bos_id], np.int32)
    ids = [np.concatenate([bos, tokenizer.encode_array(text)]).astype(np.int32) for text in texts]
    if task.kind == "schema":
        shared = _common([sequence[::-1] for sequence in ids])
        return [(sequence[:-shared], sequence[-shared:]) for sequence in ids if shared]
    # A tokenizer may join the end of a prompt with what follows: the two differ from there on.
    shared = _common(ids)
    wanted = ids[1:] if task.kind == "language_modeling" else ids
    return [(sequence[:shared], sequence[shared:]) for sequence in wanted]


def _common(sequences: Sequence[np.ndarray]) -> int:
    """Number of tokens that all begin with."""
    shortest = min(len(sequence) for sequence in sequences)
    first = sequences[0][:shortest]
    same = np.ones(shortest, bool)
    for sequence in sequences[1:]:
        same &= sequence[:shortest] == first
    return shortest if same.all() else int(np.argmin(same))


def judge(task: Task, item: Item, scores: Sequence[LogLikelihood]) -> Answer:
    """The outcome of an item from the scores of its pairs."""
    if task.kind == "language_modeling":
        return Answer(scores[0].greedy, None)
    losses = [_mean_loss(score) for score in scores]
    # As nanochat decides where a choice has no token of its own (it is what the others begin with):
    # nan is below nothing, so such a choice is taken if it is the first, and else never.
    chosen = losses.index(min(losses)) if losses else 0
    return Answer(chosen == item["gold"], chosen)


def _mean_loss(score: LogLikelihood) -> float:
    if not len(score.per_token):
        return float("nan")
    return float(-score.per_token.mean(dtype=np.float64))


def cost(task: Task, items: Sequence[Item]) -> float:
    """Characters that an item forwards on average: what a time left is reckoned by."""
    some: Sequence[Any] = items[:200]
    size = sum(len(_solved(task, item)) for item in some) / len(some)
    return (task.shots + 1) * size

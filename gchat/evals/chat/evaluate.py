"""Outcomes of the items: a choice by the likelihoods of its letters, an answer by its text.

    scored      in this process: the letter with the highest log-likelihood after the question
    asked       of an endpoint: the letter that stands highest among the first token's alternatives,
                or the one that the text names where the endpoint tells no probabilities
    answered    generated answers, each graded by its task, in threads beside the model

An outcome follows from the item, the model and the options alone, not from what else is evaluated:
a text's seed is a hash of its item.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gaia.errors import ConfigError, GaiaError
from gchat.chat_format import ChatFormat
from gchat.client import Answer, Choice, Client, ClientError, Question
from gchat.conversation import Message
from gchat.engine.requests import MAX_LOGPROBS, SamplingConfig
from gchat.evals.chat.entries import Entry
from gchat.evals.results import Record
from gchat.ranges import MAX_SEED
from gchat.score_rows import Pair
from gchat.tasks import choices

if TYPE_CHECKING:  # an endpoint is asked without jax, which takes seconds to import
    from gchat.score import LogLikelihood

Stream = Callable[[Iterable[Pair]], Iterator[list[tuple[int, "LogLikelihood"]]]]
"""Scores pairs, as `gchat.score.Scorer.stream` does with its parameters bound."""


@dataclass(frozen=True)
class Writing:
    """The way answers are generated."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    samples: int = 1
    """Answers to each question."""
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        if self.samples < 1:
            raise ConfigError(f"samples is {self.samples}", "use at least 1")
        if self.samples > 1 and not self.temperature:
            raise ConfigError(
                f"samples is {self.samples} and temperature 0", "raise the temperature: all are one"
            )
        self.question((Message("user", "?"),), 0).check()

    def question(self, messages: tuple[Message, ...], place: int) -> Question:
        """The question of an item, drawn with a seed of its own."""
        seed = (self.seed + place) % (MAX_SEED + 1)
        sampling = SamplingConfig(self.temperature, self.top_k, seed=seed)
        return Question(
            messages=messages, max_tokens=self.max_tokens, sampling=sampling, n=self.samples
        )


# ── Choices ─────────────────────────────────────────────────────────────────────────────────────


def scored(
    entries: Sequence[Entry], stream: Stream, chat_format: ChatFormat
) -> Iterator[list[Record]]:
    """Outcomes of choices, batch by batch."""
    owners: list[tuple[int, int]] = []
    nats: dict[int, dict[int, float]] = {}

    def pairs() -> Iterator[Pair]:
        for number, entry in enumerate(entries):
            prompt = chat_format.prompt(entry.item.question)
            for choice, letter in enumerate(entry.item.choices):
                owners.append((number, choice))
                yield prompt, chat_format.tokenizer.encode(letter)

    for batch in stream(pairs()):
        records = []
        for place, score in batch:
            number, choice = owners[place]
            mine = nats.setdefault(number, {})
            mine[choice] = score.sum
            if len(mine) == len(entries[number].item.choices):
                records.append(_chosen(entries[number], nats.pop(number)))
        yield records


def _chosen(entry: Entry, nats: dict[int, float]) -> Record:
    in_order = [nats[i] for i in range(len(nats))]
    chosen = in_order.index(max(in_order))
    return _choice(entry, chosen) | {"nats": [round(value, 5) for value in in_order]}


def _choice(entry: Entry, chosen: int | None) -> Record:
    return {
        "task": entry.task.name,
        "item": entry.item.id,
        "grade": float(chosen == entry.item.gold),
        "chosen": chosen,
        "gold": entry.item.gold,
    }


def asked(entries: Sequence[Entry], client: Client) -> Iterator[list[Record]]:
    """Outcomes of choices that an endpoint answers.

    Raises:
        ClientError: it does not answer at all.
    """
    if not entries:
        return
    form = _Alternatives(client, entries[0])
    for number, answer in client.batch(form.question(entry) for entry in entries):
        entry = entries[number]
        if isinstance(answer, GaiaError):
            yield [_failed(entry, answer)]
        else:
            yield [form.record(entry, answer.choices[0])]


class _Alternatives:
    """Asks with log-probabilities where the endpoint gives them, else for a text."""

    def __init__(self, client: Client, entry: Entry) -> None:
        self._logprobs: int | None = MAX_LOGPROBS
        try:
            told = bool(client.complete(self.question(entry)).choices[0].tokens)
        except (ConfigError, ClientError) as error:
            if getattr(error, "fatal", False):
                raise
            told = False
        self._logprobs = MAX_LOGPROBS if told else None

    def question(self, entry: Entry) -> Question:
        return Question(
            messages=entry.item.question,
            max_tokens=16 if self._logprobs is None else 1,
            sampling=SamplingConfig(temperature=0.0),
            logprobs=self._logprobs,
        )

    def record(self, entry: Entry, choice: Choice) -> Record:
        letters = entry.item.choices
        top = choice.tokens[0].top if choice.tokens else ()
        nats: dict[str, float] = {}
        for text, logprob in top:  # in order: of "A" and " A" the likelier one counts
            nats.setdefault(text.strip(), logprob)
        if any(letter in nats for letter in letters):
            best = max(letters, key=lambda letter: nats.get(letter, float("-inf")))
            return _choice(entry, letters.index(best)) | {"nats": [nats.get(x) for x in letters]}
        return _choice(entry, choices.chosen(choice.text, letters)) | {"text": choice.text}


def _failed(entry: Entry, error: GaiaError) -> Record:
    """A question that the model cannot be asked is wrong; one that got no answer is open."""
    failed = {"task": entry.task.name, "item": entry.item.id, "error": str(error)}
    return failed if isinstance(error, ClientError) else failed | {"grade": 0.0}


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────


def answered(entries: Sequence[Entry], client: Client, writing: Writing) -> Iterator[list[Record]]:
    """Outcomes of generated answers, as they are graded.

    Raises:
        SandboxError: answers are programs, and this machine cannot contain them.
        ClientError: the model does not answer at all.
    """
    questions = (
        writing.question(entry.item.question, zlib.crc32("\0".join(entry.key).encode()))
        for entry in entries
    )
    pool = ThreadPoolExecutor(os.cpu_count() or 1, "gchat-grade")
    grading: list[Future[Record]] = []
    try:
        for number, answer in client.batch(questions):
            entry = entries[number]
            if isinstance(answer, GaiaError):
                yield [_failed(entry, answer)]
                continue
            grading.append(pool.submit(_graded, entry, answer))
            done = [future for future in grading if future.done()]
            grading = [future for future in grading if future not in done]
            yield [future.result() for future in done]
        for future in grading:
            yield [future.result()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _graded(entry: Entry, answer: Answer) -> Record:
    grades = [
        entry.task.grade(entry.item, Message("assistant", choice.text, choice.parts))
        for choice in answer.choices
    ]
    return {
        "task": entry.task.name,
        "item": entry.item.id,
        "grade": sum(grades) / len(grades),
        "grades": grades,
        "answers": [_answer(choice) for choice in answer.choices],
        "tokens": answer.usage.completion_tokens,
    }


def _answer(choice: Choice) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": choice.text, "finish": choice.finish}
    if choice.parts:
        shown["parts"] = [[part.kind, part.text] for part in choice.parts]
    return shown


# ── All of them ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Progress:
    """State of one part of an evaluation."""

    part: str
    """"choices" or "answers"."""
    items: int
    of: int
    seconds_left: float
    """Reckoned by the items of this part; infinite before the first."""


def evaluate(
    parts: Sequence[tuple[str, int, Iterator[list[Record]]]],
    *,
    record: Callable[[list[Record]], None] = lambda records: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> int:
    """Runs the parts one after the other; returns the number of questions without an answer.

    Args:
        parts: name, number of items and outcomes of each.
        record: called with the outcomes that are to be kept.
        progress: called after each batch.
    """
    unanswered = 0
    for name, of, batches in parts:
        began, done = time.perf_counter(), 0
        for records in batches:
            kept = [one for one in records if "grade" in one]
            unanswered += len(records) - len(kept)
            done += len(records)
            record(kept)
            seconds = time.perf_counter() - began
            left = seconds * (of - done) / done if done else float("inf")
            progress(Progress(name, done, of, left))
    return unanswered

"""Verdicts on many answers, each written down at once and asked for once."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaia.errors import DataError, GaiaError
from gchat.ask.answers import Answers
from gchat.client import Answer, Client, Usage
from gchat.data.progress import progress_bar
from gchat.judge import lexical, question
from gchat.judge.items import Item
from gchat.judge.question import Verdict

_ATTEMPTS = 2
NO_VERDICT = "no verdict"
"""Error of an answer about which the judge was asked, and said nothing that is a verdict."""
_KEPT_REPLY = 300
"""Characters of a reply without a verdict that are written down."""


@dataclass(frozen=True)
class Judge:
    """A judge: a model behind a client, or words in common where there is none."""

    client: Client | None
    max_tokens: int = 300
    """Limit of the tokens of a verdict."""

    @property
    def model(self) -> str:
        """Name of the judge, for records."""
        return lexical.MODEL if self.client is None else self.client.model

    def key(self, item: Item) -> str:
        """Fingerprint of an answer, its judge and the way it is asked."""
        return item.digest(self.model, question.VERSION)[:16]


@dataclass
class Opinions:
    """Verdicts by the number of the item; None where the judge gave none."""

    passed: dict[int, bool | None] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Reasons for which there is no verdict, by the number of the item."""
    usage: Usage = field(default_factory=Usage)
    asked: int = 0
    """Answers that the judge was asked about in this process."""

    def heard(self, item: Item) -> bool:
        """Tells whether the judge replied: a request that failed says nothing of an answer."""
        return self.errors.get(item.number, NO_VERDICT) == NO_VERDICT


def judge(
    judge: Judge,
    items: Sequence[Item],
    path: Path,
    *,
    label: str,
    extra: Callable[[Item], dict[str, Any]] = lambda item: {},
    retry_errors: bool = False,
) -> Opinions:
    """Judges what the file does not hold yet.

    Args:
        judge: whom to ask. Empty answers are not asked about: they fail.
        items: answers, each with another number.
        path: file of verdicts; a line has line, id, passed, explanation, model and key.
        label: name of the work on the progress bar.
        extra: more fields of an item's line.
        retry_errors: ask again where an error or no verdict stands.

    Raises:
        DataError: the file holds verdicts on other answers, or of another judge.
        ClientError: the endpoint cannot be asked any more; what it said is kept.
    """
    opinions = Opinions()
    with Answers(path, retry_errors=retry_errors, maker="gchat judge") as answers:
        _check(answers, items, judge)
        left = [item for item in items if item.number not in answers.keys]
        with progress_bar(label, len(items), None, "") as bar:
            bar.update(len(items) - len(left))
            for item, fields in _verdicts(judge, left, opinions):
                answers.write(_line(item, fields, judge, extra(item)))
                bar.update()
        answers.in_order()
    for record in read(path):
        opinions.passed[record["line"]] = record.get("passed")
        if record.get("error") is not None:
            opinions.errors[record["line"]] = record["error"]
    return opinions


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of a file of verdicts."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _check(answers: Answers, items: Sequence[Item], judge: Judge) -> None:
    keys = {item.number: judge.key(item) for item in items}
    for number, key in answers.keys.items():
        if keys.get(number) != key:
            raise DataError(
                f"{answers.path} holds a verdict on line {number} of another answer, or of another "
                f"judge than {judge.model}",
                "name another file, or remove it",
            )


def _line(
    item: Item, fields: dict[str, Any], judge: Judge, extra: dict[str, Any]
) -> dict[str, Any]:
    named = {"line": item.number} if item.id is None else {"line": item.number, "id": item.id}
    return named | item.groups | extra | fields | {"model": judge.model, "key": judge.key(item)}


def _verdicts(
    judge: Judge, items: Sequence[Item], opinions: Opinions
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each item with the fields of its line, as they come."""
    todo = []
    for item in items:
        if item.answer.strip():
            todo.append(item)
        else:
            yield item, _fields(Verdict("there is no answer", False))
    opinions.asked += len(todo)
    if judge.client is None:
        yield from ((item, _fields(lexical.judge(item))) for item in todo)
        return
    for attempt in range(_ATTEMPTS):
        again = []
        for item, result in _replies(judge, todo, attempt):
            if isinstance(result, GaiaError):
                yield item, {"passed": None, "error": str(result)}
                continue
            opinions.usage += result.usage
            made = question.verdict(result.text)
            if made is not None:
                yield item, _fields(made)
            elif attempt + 1 < _ATTEMPTS:
                again.append(item)
            else:
                reply = result.text[:_KEPT_REPLY]
                yield item, {"passed": None, "error": NO_VERDICT, "reply": reply}
        todo = again


def _fields(verdict: Verdict) -> dict[str, Any]:
    return {"passed": verdict.passed, "explanation": verdict.explanation}


def _replies(
    judge: Judge, items: Sequence[Item], attempt: int
) -> Iterator[tuple[Item, Answer | GaiaError]]:
    if not items:
        return
    assert judge.client is not None
    asked = (
        question.question(item, max_tokens=judge.max_tokens, attempt=attempt) for item in items
    )
    for index, result in judge.client.batch(asked):
        yield items[index], result

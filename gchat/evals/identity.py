"""Identity: does a model say its name when it is asked, and only then?

The questions (identity.yaml) are kept out of training: none shares a sentence frame with what
`gchat synth identity` writes, which `shared` checks. A frame is a sentence as lower-case words,
with the names in it taken out.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from gaia.errors import ConfigError, GaiaError
from gchat.client import Client, Question
from gchat.conversation import Message
from gchat.engine.requests import SamplingConfig
from gchat.evals.counts import Count

_RUN = 4  # words in a row that make two sentences the same in part
# Japanese, Chinese and Korean write no spaces: a name among their letters stands by itself.
_LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_WORD = re.compile(r"[\w']+")
_SENTENCE = re.compile(r"[.?!:;\n。？！¿¡]+")


class HeldOut(NamedTuple):
    """Questions that no training conversation asks in these words."""

    about_itself: tuple[str, ...]
    about_else: tuple[str, ...]
    """Answers must not hold the name."""


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and whether the name is in it."""

    about_itself: bool
    question: str
    answer: str
    named: bool


@dataclass(frozen=True)
class Identity:
    """Answers of one model."""

    name: str
    model: str
    asked: tuple[Asked, ...]

    def named(self, *, about_itself: bool) -> tuple[int, int]:
        """Answers that hold the name, and all of that kind."""
        of_kind = [one for one in self.asked if one.about_itself == about_itself]
        return sum(one.named for one in of_kind), len(of_kind)

    def figures(self) -> dict[str, Any]:
        """Shares with 95% intervals (Wilson), and every answer."""
        itself, other = self.named(about_itself=True), self.named(about_itself=False)
        return {
            "name": self.name,
            "model": self.model,
            "named": itself[0] / itself[1],
            "named_interval": Count(*itself).interval,
            "leaked": other[0] / other[1],
            "leaked_interval": Count(*other).interval,
            "questions": itself[1],
            "other_questions": other[1],
            "answers": [vars(one) for one in self.asked],
        }


@functools.cache
def _texts() -> dict[str, list[str]]:
    place = files("gchat.evals") / "identity.yaml"
    return yaml.safe_load(place.read_text(encoding="utf-8"))


def held_out(name: str) -> HeldOut:
    """The questions about a persona.

    Raises:
        ConfigError: `name` holds no letter.
    """
    check_name(name)
    texts = _texts()
    others = [other for other in texts["others"] if not holds(other, name)]
    about = [
        text.format(other=others[i % len(others)]) for i, text in enumerate(texts["about_itself"])
    ]
    return HeldOut(tuple(about), tuple(texts["about_else"]))


def check_name(name: str) -> None:
    """Raises ConfigError for a name that no answer could be searched for."""
    if not re.search(r"\w", name) or name != name.strip() or "\n" in name:
        raise ConfigError(f"name = {name!r} is no name", "give one such as Kibo")


def holds(text: str, name: str) -> bool:
    """True where a text holds a name as a word of its own, in any case."""
    return _word(name).search(text) is not None


@functools.cache
def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!{_LETTER}){re.escape(name)}(?!{_LETTER})", re.IGNORECASE)


def frames(text: str, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The sentences of a text as words, without these names."""
    for name in sorted(names, key=len, reverse=True):
        text = _word(name).sub("NAME", text)
    for sentence in _SENTENCE.split(text):
        words = tuple(w.lower() for w in _WORD.findall(sentence) if w != "NAME")
        if words:
            yield words


def shared(
    asked: Iterable[str], trained: Iterable[str], names: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Pairs of questions that share a sentence frame; empty where none does.

    Two sentences share a frame where they are the same without names, where one of three words or
    more is part of the other, or where four words in a row are the same.

    Args:
        asked: held-out questions.
        trained: what people say in training conversations.
        names: of the persona and of other assistants.
    """
    whole: dict[tuple[str, ...], str] = {}
    parts: dict[tuple[str, ...], str] = {}
    for text in trained:
        for words in frames(text, names):
            whole.setdefault(words, text)
            for run in _runs(words, 3):
                parts.setdefault(run, text)
    pairs = []
    for text in asked:
        for words in frames(text, names):
            inside = (words if len(words) <= 3 else None, *_runs(words, _RUN))
            theirs = whole.get(words) or next((parts[r] for r in inside if r in parts), None)
            theirs = theirs or next((whole[r] for r in _runs(words, 3) if r in whole), None)
            if theirs is not None:
                pairs.append((text, theirs))
                break
    return pairs


def _runs(words: tuple[str, ...], least: int) -> Iterator[tuple[str, ...]]:
    """Parts of a sentence of `least` to `_RUN` words in a row."""
    for n in range(least, _RUN + 1):
        yield from (words[i : i + n] for i in range(len(words) - n + 1))


def evaluate(client: Client, name: str, *, max_tokens: int = 48) -> Identity:
    """Asks every held-out question, one conversation each, always with the most likely token.

    Args:
        client: of the model.
        name: of the persona.
        max_tokens: limit of an answer.

    Raises:
        ConfigError: `name` is none.
        GaiaError: a question got no answer.
    """
    questions = held_out(name)
    listed = [(True, q) for q in questions.about_itself]
    listed += [(False, q) for q in questions.about_else]
    answers: dict[int, str] = {}
    asked = (
        Question(
            messages=(Message("user", text),),
            max_tokens=max_tokens,
            sampling=SamplingConfig(temperature=0.0),
        )
        for _, text in listed
    )
    for index, answer in client.batch(asked):
        if isinstance(answer, GaiaError):
            raise answer
        answers[index] = answer.text
    return Identity(
        name,
        client.model,
        tuple(
            Asked(itself, text, answers[i], holds(answers[i], name))
            for i, (itself, text) in enumerate(listed)
        ),
    )

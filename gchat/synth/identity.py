"""Conversations that teach a model who it is, and not to say so when nobody asked.

Phrasings and situations lie in identity.yaml, questions about everything else in everyday.yaml.
Row i of the result is a function of (persona, seed, i, the rows before).
"""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from gaia.errors import ConfigError, DataError
from gchat.chat_format import Conversation, Message
from gchat.evals.identity import held_out, holds, shared
from gchat.synth.persona import Persona

EVERYDAY_SHARE = 0.45
"""Conversations in which the name does not occur: with fewer, a model names itself everywhere."""
MOST = 10_000
"""Most conversations: beyond, the templates only repeat themselves."""
_TRIES = 200


@dataclass(frozen=True)
class Row:
    """One conversation of the file."""

    conversation: Conversation
    about_itself: bool
    """False where the name must not occur in any answer."""
    category: str

    def to_json(self, persona: Persona) -> dict[str, Any]:
        """The row as it is written."""
        about = persona.name if self.about_itself else None
        return self.conversation.to_json() | {"category": self.category, "identity": about}


@functools.cache
def texts(name: str) -> dict[str, Any]:
    """A data file of this package."""
    place = files("gchat.synth") / f"{name}.yaml"
    return yaml.safe_load(place.read_text(encoding="utf-8"))


def names_of(persona: Persona) -> list[str]:
    """Names that a sentence frame leaves out: the persona's, and those it is taken for."""
    given = texts("identity")
    return [persona.name, *given["others"], *given["aliases"], *given["bosses"]]


def conversations(persona: Persona, count: int, *, seed: int = 0) -> list[Row]:
    """Distinct conversations in random order, `EVERYDAY_SHARE` of them without the name.

    Raises:
        ConfigError: more are asked for than the templates give.
        DataError: a phrasing that is held out for evaluation occurs in one.
    """
    if not 1 <= count <= MOST:
        raise ConfigError(f"count = {count} is out of range", f"use 1 to {MOST}; 1000 is usual")
    writer = _Writer(persona, random.Random(f"identity {seed}"))
    everyday = round(count * EVERYDAY_SHARE)
    rows: list[Row] = []
    seen: set[Conversation] = set()
    for i in range(count):
        for _ in range(_TRIES):
            row = writer.everyday() if i < everyday else writer.identity()
            if row is not None and row.conversation not in seen:
                break
        else:
            raise ConfigError(f"count = {count} is more than the templates give", f"use {i}")
        seen.add(row.conversation)
        rows.append(row)
    random.Random(f"order {seed}").shuffle(rows)
    check_held_out(persona, rows)
    return rows


def check_held_out(persona: Persona, rows: Sequence[Row]) -> None:
    """Raises DataError where a question kept for evaluation shares a frame with a conversation."""
    questions = held_out(persona.name)
    said = {
        message.content
        for row in rows
        for message in row.conversation.messages
        if message.role == "user"
    }
    if pairs := shared([*questions.about_itself, *questions.about_else], said, names_of(persona)):
        asked, trained = pairs[0]
        raise DataError(
            f"{trained!r} shares a sentence frame with the held-out {asked!r} "
            f"({len(pairs)} such pairs)",
            "word it otherwise",
        )


class _Writer:
    """Draws conversations from the templates."""

    def __init__(self, persona: Persona, draw: random.Random) -> None:
        self._persona, self._draw = persona, draw
        self._itself, self._else = texts("identity"), texts("everyday")
        self._groups = list(self._itself["groups"])
        sizes = [
            len(g.get("questions", g.get("pairs", ()))) for g in self._itself["groups"].values()
        ]
        self._weights = [3 + size for size in sizes]

    def identity(self) -> Row | None:
        """A conversation in which the model is asked about itself."""
        group = self._draw.choices(self._groups, self._weights)[0]
        asked = self._pair(group)
        shape = self._draw.random()
        turns = [asked]
        if shape < 0.2:
            turns = [self._everyday_pair(), asked]
        elif shape < 0.3:
            turns = [asked, self._everyday_pair()]
        elif shape < 0.5:
            question, answer = self._draw.choice(self._itself["followups"])
            turns = [asked, (question, self._filled(answer))]
        elif shape < 0.6:
            turns = [tuple(self._draw.choice(self._itself["greetings"])), asked]
        return self._row(turns, group, about_itself=True)

    def everyday(self) -> Row | None:
        """A conversation about anything else."""
        shape = self._draw.random()
        if shape < 0.1:
            visit = self._draw.choice(self._else["visits"])
            visitor = self._draw.choice(self._else["visitors"])
            first, reply, second, answer = (text.format(visitor) for text in visit)
            between = [self._everyday_pair()] if self._draw.random() < 0.5 else []
            return self._row([(first, reply), *between, (second, answer)], "visitor")
        if shape < 0.2:
            greeting = tuple(self._draw.choice(self._itself["greetings"]))
            return self._row([greeting, self._everyday_pair()], "greeting")
        if shape < 0.4:
            return self._row([self._everyday_pair(), self._everyday_pair()], "everyday")
        return self._row([self._everyday_pair()], "everyday")

    def _row(
        self, turns: Sequence[tuple[str, str]], category: str, *, about_itself: bool = False
    ) -> Row | None:
        """A row; None where the name would occur although nobody asks for it."""
        if len({question for question, _ in turns}) < len(turns):
            return None
        messages = []
        if self._draw.random() < 0.12:
            messages.append(Message("system", self._draw.choice(self._itself["systems"])))
        for question, answer in turns:
            messages += [Message("user", question), Message("assistant", answer)]
        if not about_itself and any(holds(m.content, self._persona.name) for m in messages):
            return None
        return Row(Conversation(tuple(messages)), about_itself, category)

    def _pair(self, group: str) -> tuple[str, str]:
        """A question about the model and its answer."""
        given, draw = self._itself["groups"][group], self._draw
        if "pairs" in given:
            question, answer = draw.choice(given["pairs"])
            return question, self._filled(answer)
        slots = {
            "other": draw.choice(self._without(self._itself["others"])),
            "alias": draw.choice(self._without(self._itself["aliases"])),
            "boss": draw.choice(self._without(self._itself["bosses"])),
        }
        question = draw.choice(given["questions"]).format(**slots)
        answer = self._filled(draw.choice(given["answers"]), **slots)
        return (question if given.get("as_written") else self._varied(question)), answer

    def _without(self, names: Sequence[str]) -> list[str]:
        """Names that are neither the persona's nor its maker's."""
        own = f"{self._persona.name} {self._persona.maker}"
        return [name for name in names if not holds(own, name)]

    def _everyday_pair(self) -> tuple[str, str]:
        draw = self._draw
        topic = draw.choice([*self._else["topics"], "sums", "sums"])
        if topic == "sums":
            return self._sum()
        given = self._else["topics"][topic]
        row = draw.choice(given["rows"])
        question = draw.choice(given["questions"]).format(*row)
        answer = draw.choice(given["answers"]).format(*row)
        return self._varied(_upper(question)), _upper(answer)

    def _sum(self) -> tuple[str, str]:
        draw = self._draw
        a, b = draw.randint(0, 20), draw.randint(0, 20)
        sign, word, result = draw.choice([("+", "plus", a + b), ("-", "minus", a - b)])
        question = draw.choice(
            [f"What is {a} {sign} {b}?", f"How much is {a} {word} {b}?", f"{a} {sign} {b} = ?"]
        )
        return self._varied(question), f"{a} {sign} {b} = {result}."

    def _filled(self, text: str, **slots: str) -> str:
        spelled = "-".join(self._persona.name.upper().replace(" ", ""))
        return _upper(text.format(**vars(self._persona), spelled=spelled, **slots))

    def _varied(self, question: str) -> str:
        """A question as people type it: behind an opener, without its mark, in small letters."""
        draw = self._draw
        opener = draw.choice(self._itself["openers"]) if draw.random() < 0.6 else ""
        if opener.endswith((", ", ": ")) and question.split()[0].rstrip(",'") not in self._kept():
            question = question[0].lower() + question[1:]
        question = opener + question
        how = draw.random()
        if how < 0.1:
            question = question.rstrip("?!.")
        elif how < 0.18:
            question = question.lower()
        return question

    @functools.cache  # noqa: B019 - as many writers as files
    def _kept(self) -> frozenset[str]:
        """First words that keep their capital."""
        names = (*self._itself["others"], *self._itself["aliases"], self._persona.name)
        return frozenset(("I", "I'm", *names))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def users(rows: Sequence[Row]) -> Iterator[str]:
    """What people say in conversations."""
    for row in rows:
        yield from (m.content for m in row.conversation.messages if m.role == "user")

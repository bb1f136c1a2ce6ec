"""Facts of a window that a style can be about: counted to choose styles, picked to write one."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

from gchat.synth.features import KINDS, Feature, features
from gchat.synth.styles import Style
from gchat.synth.windows import Window
from gchat.synth.words import words

T = TypeVar("T")
_NAMES = ("person", "place", "event", "name")
_GROUPS = {"names": _NAMES, "any": KINDS, "figure": ("date", "number")}
_YEAR = re.compile(r"\b(1[0-9]\d\d|20\d\d)\b")
_CAUSE = re.compile(r"^(.{20,}?),? ((?:because|due to|in order to|as a result of|so that) .+)$")
_PREDICATE = re.compile(r"^ (?:[a-z]+ .{8,})$")
_LETTERS = "ABCD"
_LONG_WORDS = 12


class Facts:
    """All facts of one window.

    Args:
        window: the sentences.
        others: values of each kind that the article or corpus has elsewhere, for wrong answers.
    """

    def __init__(self, window: Window, others: Mapping[str, Sequence[str]] | None = None) -> None:
        self.window, self._others = window, others or {}

    @cached_property
    def features(self) -> list[Feature]:
        """People, places, events, dates, numbers and names."""
        return features(self.window.sentences)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of each thing that a style may need."""
        counts = {kind: sum(f.kind == kind for f in self.features) for kind in KINDS}
        for group, kinds in _GROUPS.items():
            counts[group] = sum(counts[kind] for kind in kinds)
        return counts | {
            "subject": len(self._subjects),
            "two": len(self._twos),
            "cause": len(self._causes),
            "long": len(self._long),
            "dates": len(self._dated) if len({year for year, _ in self._dated}) > 1 else 0,
            "sentences": len(self.window.sentences),
        }

    @cached_property
    def topic(self) -> str:
        """Title of the article, or the name that the window mentions most."""
        if self.window.title:
            return self.window.title
        names = [f.value for f in self.features if f.kind in _NAMES]
        if names:
            return max(names, key=lambda name: (names.count(name), len(name)))
        return "this text"

    def of(self, pick: str) -> list[Feature]:
        """Features of a kind or a group of kinds."""
        kinds = _GROUPS.get(pick, (pick,))
        return [f for f in self.features if f.kind in kinds]

    @cached_property
    def _subjects(self) -> list[Feature]:
        sentences = self.window.sentences
        return [
            f
            for f in self.features
            if f.kind in _NAMES
            and f.start == 0
            and _PREDICATE.match(sentences[f.sentence][len(f.value) :])
        ]

    @cached_property
    def _twos(self) -> list[tuple[Feature, Feature]]:
        names = self.of("names")
        return [(a, b) for a, b in pairwise(names) if a.sentence == b.sentence]

    @cached_property
    def _causes(self) -> list[tuple[int, str, str]]:
        made = []
        for i, sentence in enumerate(self.window.sentences):
            if match := _CAUSE.match(sentence):
                made.append((i, match[1], match[2]))
        return made

    @cached_property
    def _long(self) -> list[int]:
        return [i for i, s in enumerate(self.window.sentences) if len(s.split()) >= _LONG_WORDS]

    @cached_property
    def _dated(self) -> list[tuple[int, int]]:
        """(year, sentence) of sentences with exactly one year."""
        made = []
        for i, sentence in enumerate(self.window.sentences):
            years = set(_YEAR.findall(sentence))
            if len(years) == 1:
                made.append((int(years.pop()), i))
        return made

    def fields(self, style: Style) -> dict[str, str] | None:
        """Values for the braces of a style's question and answer; None where none fits.

        "fact" is among them: what the record is about, the same for every style that asks it.
        """
        draw = Draw(f"{self.window.id} {style.name}")
        if style.pick in ("sentence", "pair", "three"):
            return self._of_sentences(style.pick, draw)
        if style.pick in ("dates", "cause", "long", "whole", "outsider"):
            return getattr(self, f"_of_{style.pick}")(draw)
        if style.pick == "subject":
            return self._of_feature(style, draw.one(self._subjects), draw)
        if style.pick == "two":
            feature, other = draw.one(self._twos) or (None, None)
            fields = self._of_feature(style, feature, draw)
            return fields and other and {**fields, "other": other.value}
        return self._of_feature(style, draw.one(self.of(style.pick)), draw)

    def _of_feature(
        self, style: Style, feature: Feature | None, draw: "Draw"
    ) -> dict[str, str] | None:
        if feature is None:
            return None
        sentence = self.window.sentences[feature.sentence]
        before = sentence[: feature.start].split()
        after = sentence[feature.start + len(feature.value) :]
        fields = self._of_sentence(feature.sentence) | {
            "value": feature.value,
            "blank": feature.blanked(sentence),
            "dots": feature.blanked(sentence).replace("____", "…"),
            "around": " ".join([*before[-5:], "____" + " ".join(after.split(" ")[:6])]),
            "predicate": after.strip().rstrip(".!"),
            "json": json.dumps({"subject": self.topic, "value": feature.value}, ensure_ascii=False),
            "fact": f"{self.window.start + feature.sentence}:{feature.kind}:{feature.value}",
        }
        if not style.wrong:
            return fields
        wrong = self.wrong(feature, draw, 3 if style.form == "choice" else 1)
        if not wrong:
            return None
        return fields | self._with_wrong(feature, sentence, wrong, draw)

    def _with_wrong(
        self, feature: Feature, sentence: str, wrong: list[str], draw: "Draw"
    ) -> dict[str, str]:
        options = draw.shuffled([feature.value, *wrong])
        lettered = [f"{_LETTERS[i]}) {option}" for i, option in enumerate(options)]
        both = draw.shuffled([feature.value, wrong[0]])
        end = feature.start + len(feature.value)
        return {
            "wrong": wrong[0],
            "altered": sentence[: feature.start] + wrong[0] + sentence[end:],
            "options": "\n".join(lettered),
            "letter": _LETTERS[options.index(feature.value)],
            "value_or_wrong": " or ".join(both),
        }

    def wrong(self, feature: Feature, draw: "Draw", count: int = 1) -> list[str]:
        """Values of the same kind that the sentence does not have, at most `count`."""
        sentence = self.window.sentences[feature.sentence]
        here = [f.value for f in self.features if f.kind == feature.kind]
        given = [*here, *self._others.get(feature.kind, ())]
        good = [
            value
            for value in dict.fromkeys(given)
            if value not in sentence and feature.value not in value and _alike(value, feature.value)
        ]
        return draw.shuffled(good)[:count]

    def _of_sentence(self, number: int) -> dict[str, str]:
        sentence = self.window.sentences[number]
        return {
            "sentence": sentence,
            "opening": " ".join(sentence.split()[:6]).rstrip(",;:."),
            "topic": self.topic,
            "fact": f"{self.window.start + number}:sentence",
        }

    def _of_sentences(self, pick: str, draw: "Draw") -> dict[str, str] | None:
        length = {"sentence": 1, "pair": 2, "three": 3}[pick]
        listed = self.window.sentences
        start = draw.one(list(range(len(listed) - length + 1)))
        if start is None:
            return None
        more = dict(zip(("next", "third"), listed[start + 1 : start + length], strict=False))
        return self._of_sentence(start) | more

    def _of_cause(self, draw: "Draw") -> dict[str, str] | None:
        if (chosen := draw.one(self._causes)) is None:
            return None
        number, effect, cause = chosen
        first, _, rest = effect.partition(" ")
        lowered = f"{first.lower()} {rest}" if first in _ARTICLES else effect
        cause = cause[0].upper() + cause[1:]
        return self._of_sentence(number) | {"effect": lowered, "cause": cause}

    def _of_long(self, draw: "Draw") -> dict[str, str] | None:
        if (number := draw.one(self._long)) is None:
            return None
        words = self.window.sentences[number].split()
        at = len(words) // 2
        halves = {"half": " ".join(words[:at]), "rest": " ".join(words[at:])}
        return self._of_sentence(number) | halves

    def _of_dates(self, draw: "Draw") -> dict[str, str] | None:
        by_year = sorted(self._dated)
        pairs = [(a, b) for i, a in enumerate(by_year) for b in by_year[i + 1 :] if a[0] < b[0]]
        if (chosen := draw.one(pairs)) is None:
            return None
        early, late = chosen
        listed = self.window.sentences
        one, two = draw.shuffled([listed[early[1]], listed[late[1]]])
        cut = [" ".join(text.split()[:8]) for text in (one, two)]
        return {
            "one": one, "two": two, "cut_one": cut[0], "cut_two": cut[1],
            "early": listed[early[1]], "late": listed[late[1]],
            "early_year": str(early[0]), "late_year": str(late[0]), "topic": self.topic,
            "fact": f"{self.window.start + early[1]}:order:{early[0]}<{late[0]}",
        }  # fmt: skip

    def _of_whole(self, draw: "Draw") -> dict[str, str] | None:
        listed = self.window.sentences
        names = list(dict.fromkeys(f.value for f in self.of("names")))
        last = self._of_sentence(len(listed) - 1)["opening"]
        return self._of_sentence(0) | {
            "first": listed[0], "last": listed[-1], "closing": last,
            "list_names": "\n".join(names),
            "list_dates": "\n".join(dict.fromkeys(f.value for f in self.of("date"))),
            "list_numbers": "\n".join(dict.fromkeys(f.value for f in self.of("number"))),
            "keywords": ", ".join(names[:8]),
            "main": draw.one(names) or self.topic,
            "fact": f"{self.window.start}:whole",
        }  # fmt: skip

    def _of_outsider(self, draw: "Draw") -> dict[str, str] | None:
        text = self.window.text
        given = [v for kind in _NAMES for v in self._others.get(kind, ()) if v not in text]
        if (wrong := draw.one(given)) is None:
            return None
        number = draw.one(list(range(len(self.window.sentences)))) or 0
        return self._of_sentence(number) | {"wrong": wrong}


_ARTICLES = words("openers")


def _alike(a: str, b: str) -> bool:
    """True for values that could stand in one another's place, as a whole date for a whole date."""
    shape = [re.sub(r"\d+", "0", re.sub(r"[A-Za-z]+", "a", v)) for v in (a, b)]
    if any(c.isdigit() for c in a + b):
        return shape[0] == shape[1]
    return True


class Draw:
    """Choices that depend on a text alone, the same in every process."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed, 0

    def _number(self) -> int:
        self._count += 1
        digest = hashlib.blake2b(f"{self._seed} {self._count}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def one(self, given: Sequence[T]) -> T | None:
        """One of them; None where there is none."""
        return self.of(given) if given else None

    def of(self, given: Sequence[T]) -> T:
        """One of them, of which there is one at least."""
        return given[self._number() % len(given)]

    def shuffled(self, given: Sequence[T]) -> list[T]:
        """The same in another order."""
        return [given[i] for _, i in sorted((self._number(), i) for i in range(len(given)))]

"""Features of a window: people, places, events, dates and numbers, found by rules of English.

No model reads the text: the offline generator and contrastive pairs need the same features every
time. What is told by a capital is checked by its neighbours; what is not certain is a "name".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gchat.synth.words import words

Kind = Literal["person", "place", "event", "date", "number", "name"]
KINDS: tuple[Kind, ...] = ("person", "place", "event", "date", "number", "name")

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_MONTH = "(?:" + "|".join(MONTHS) + ")"
_YEAR = r"(?:1[0-9]\d\d|20\d\d)"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} {_MONTH}(?:,? {_YEAR})?|{_MONTH} \d{{1,2}}(?:, {_YEAR})?(?!\d)"
    rf"|{_MONTH} {_YEAR}|{_YEAR})(?![\d,-]*\d)\b"
)
_UNIT = (
    "(?:million|billion|thousand|hundred|per cent|percent|km|cm|mm|m|kg|g|miles|mile|feet|ft|inches"
    "|metres|meters|kilometres|kilometers|acres|tons|tonnes|pounds|years|days|hours|minutes|men|"
    "people|soldiers|goals|games|copies|points|dollars)"
)
_NUMBER = re.compile(
    rf"(?<![\w.,$£-])(?<!– )[$£]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:%| {_UNIT}\b)?"
    r"(?![\w-])(?![.,:] ?\d)(?! –)"  # neither part of a number nor an end of a range
)
_CAPITAL = r"[A-Z][\w'’-]*[a-z][\w'’-]*|[A-Z]\.|[A-Z]{2,5}"
_NAME = re.compile(
    rf"(?:{_CAPITAL})(?:(?: of(?: the)?| the| de| von| van| and the)? (?:{_CAPITAL}))*"
)
_EVENT_WORDS = words("events")
_PLACE_WORDS = words("places")
_TITLES = words("titles")
# Words with a capital at the beginning of a sentence that are no names.
_COMMON = words("no_names")
_ADJECTIVES = ("ish", "ese", "ean", "ian", "can", "man", "ench", "iet")
_NOUN = re.compile(r"[ -][a-z]")  # "American lobster": an adjective, not a name
_IN_PLACE = re.compile(r"\b(?:in|at|near|from|to|into|across|around|outside|off|through|toward)\s$")
_ACTS = re.compile(
    r"^(?:'s)? (?:said|wrote|was born|died|married|became|played|commanded|argued|believed|won|"
    r"directed|sang|recorded|served|led|stated|told|joined|announced|explained|praised|noted|"
    r"described|felt|thought|returned|moved|studied|scored|agreed)\b"
)


@dataclass(frozen=True)
class Feature:
    """A feature at its place."""

    kind: Kind
    value: str
    sentence: int
    """Number within the window."""
    start: int
    """First character within the sentence."""

    def blanked(self, sentence: str) -> str:
        """The sentence with a gap in place of the feature."""
        return f"{sentence[: self.start]}____{sentence[self.start + len(self.value) :]}"


def features(sentences: Sequence[str]) -> list[Feature]:
    """Features of sentences in their order, without overlaps; a value once per sentence."""
    people = _people(sentences)
    made: list[Feature] = []
    for number, sentence in enumerate(sentences):
        taken: list[tuple[int, int]] = []
        values: set[str] = set()
        for kind, value, start in [
            *_dates(sentence),
            *_names(sentence, people),
            *_counts(sentence),
        ]:
            end = start + len(value)
            if value in values or any(start < b and a < end for a, b in taken):
                continue
            if sentence.count(value) > 1:  # a gap would leave the answer beside it
                continue
            taken.append((start, end))
            values.add(value)
            made.append(Feature(kind, value, number, start))
    return sorted(made, key=lambda f: (f.sentence, f.start))


def _dates(sentence: str) -> list[tuple[Kind, str, int]]:
    return [("date", m[0], m.start()) for m in _DATE.finditer(sentence)]


def _counts(sentence: str) -> list[tuple[Kind, str, int]]:
    return [("number", m[0], m.start()) for m in _NUMBER.finditer(sentence)]


def _names(sentence: str, people: frozenset[str]) -> list[tuple[Kind, str, int]]:
    made: list[tuple[Kind, str, int]] = []
    for match in _NAME.finditer(sentence):
        value, start = match[0], match.start()
        first, _, rest = value.partition(" ")
        while first in _COMMON and rest:  # "In Paris" at the beginning of a sentence
            start += len(first) + 1
            value = rest
            first, _, rest = value.partition(" ")
        value = value.removesuffix("'s").removesuffix("’s").rstrip(".")
        if value in _COMMON or len(value) < 3:
            continue
        if start == 0 and " " not in value:  # any word has a capital here
            continue
        if value.endswith(_ADJECTIVES) and _NOUN.match(sentence[start + len(value) :]):
            continue
        before, after = sentence[:start], sentence[start + len(value) :]
        made.append((_kind(value, before, after, people), value, start))
    return made


def _kind(value: str, before: str, after: str, people: frozenset[str]) -> Kind:
    words = value.split()
    if _EVENT_WORDS.intersection(words):
        return "event"
    if _PLACE_WORDS.intersection(words):
        return "place"
    if words[0].rstrip(".") in _TITLES or value in people or _ACTS.match(after):
        return "person"
    if _IN_PLACE.search(before):
        return "place"
    return "name"


def _people(sentences: Sequence[str]) -> frozenset[str]:
    """Names that act as a person somewhere in the window, and their last words."""
    known: set[str] = set()
    for sentence in sentences:
        for match in _NAME.finditer(sentence):
            value = match[0]
            words = value.split()
            if words[0] in _COMMON or _EVENT_WORDS.union(_PLACE_WORDS).intersection(words):
                continue
            titled = words[0].rstrip(".") in _TITLES and len(words) > 1
            if titled or _ACTS.match(sentence[match.end() :]):
                known |= {value, words[-1]}
    return frozenset(known)

"""Answers whose truth is known, to count a judge's errors on: paraphrases and planted mistakes.

A right answer is its reference in other words. A wrong one has another name, number or date in its
place, or says the opposite; where a reference holds nothing of the kind it is the reference of
another question. Both get the same kinds of frames, so that no frame tells them apart. They are
easier to judge than some real answers, and a file of people's labels (`--labelled`) is better.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gchat.judge.items import Item
from gchat.judge.words import named, words

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve")  # fmt: skip
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December")  # fmt: skip
_DAY_MONTH = re.compile(rf"\b(\d{{1,2}}) ({'|'.join(_MONTHS)})\b")
_NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])")
_PLACE = re.compile(r"\b(?:in|at|on|near|from|to|of|over) (?:the )?$")
_NAME = re.compile(r"\b[A-Z][\w'’-]+(?: (?:of |the |von |de |van )?[A-Z][\w'’-]+)*")
SHORT_WORDS = 6


@dataclass(frozen=True)
class Planted:
    """An answer whose truth is known."""

    item: Item
    right: bool
    how: str
    """Kind of change: "paraphrase", "name", "number", "date", "opposite" or "other answer"."""


def plant(items: Sequence[Item], count: int, *, seed: int = 0) -> list[Planted]:
    """Right and wrong answers to the first questions of a shuffle, one of each to a question.

    Args:
        items: whose questions, references and snippets are taken; their answers are not.
        count: of each kind, at most; fewer where there are fewer questions.
        seed: same seed, same answers.
    """
    draw = random.Random(seed)
    once = list({(item.question, item.reference): item for item in items}.values())
    chosen = draw.sample(once, min(count, len(once)))
    names = sorted({name for item in once for name in _names(item.reference)})
    planted = []
    for item in chosen:
        right = _framed(_reworded(item.reference, draw), draw)
        planted.append(Planted(replace(item, answer=right), True, "paraphrase"))
        mistake = _mistake(item, names, once, draw)
        if mistake is not None:
            text, how = mistake
            wrong = replace(item, answer=_framed(_reworded(text, draw), draw))
            planted.append(Planted(wrong, False, how))
    return planted


def _reworded(text: str, draw: random.Random) -> str:
    """The same facts in some other words."""
    for group in words()["rewordings"]:
        for pattern, other in group.items():
            if re.search(rf"\b{pattern}\b", text) and draw.random() < 0.7:
                text = re.sub(rf"\b{pattern}\b", other, text, count=1)
                break
    if draw.random() < 0.5:
        text = _DAY_MONTH.sub(r"\2 \1", text)
    return text


def _framed(text: str, draw: random.Random) -> str:
    short = len(text.split()) <= SHORT_WORDS and not text.rstrip().endswith((".", "!", "?"))
    if short:
        return draw.choice(words()["short_frames"]).format(s=text, S=text)
    first = text.split(maxsplit=1)[0]
    small = text[:1].lower() + text[1:] if first.lower() in named("starters") else text
    ended = text if text.rstrip().endswith((".", "!", "?")) else f"{text}."
    framed = draw.choice(words()["frames"]).replace("{S}", ended)
    return framed.replace("{s}", small)


def _mistake(
    item: Item, names: Sequence[tuple[str, bool]], items: Sequence[Item], draw: random.Random
) -> tuple[str, str] | None:
    """The reference with a mistake, and its kind; None where none can be made."""
    ways = [_opposite, _other_number, _other_date, partial(_other_name, names=names)]
    draw.shuffle(ways)
    for way in ways:
        made = way(item, draw)
        if made is not None and made[0] != item.reference:
            return made
    return _other_answer(item, items, draw)


def _opposite(item: Item, draw: random.Random) -> tuple[str, str] | None:
    for pair in words()["opposites"]:
        for one, other in (pair, pair[::-1]):
            match = re.search(rf"\b{one}\b", item.reference, re.IGNORECASE)
            # "no" and "more" decide only as the whole point of an answer.
            if match and (match.start() == 0 or one not in ("no", "yes", "more", "first", "last")):
                word = other.capitalize() if match[0][0].isupper() else other
                return item.reference[: match.start()] + word + item.reference[match.end() :], (
                    "opposite"
                )
    return None


def _new_first(matches: list[re.Match[str]], question: str) -> list[re.Match[str]]:
    """Those that the question does not give away, or all where it gives away all."""
    return [match for match in matches if match[0] not in question] or matches


def _other_number(item: Item, draw: random.Random) -> tuple[str, str] | None:
    text = item.reference
    matches = _new_first(list(_NUMBER.finditer(text)), item.question)
    if matches:
        match = draw.choice(matches)
        digits = match[0].replace(",", "")
        if "." in digits:
            other = f"{float(digits) * draw.choice([0.5, 2, 3]):g}"
        else:
            value = int(digits)
            reach = 9 if 1000 <= value <= 2100 and "," not in match[0] else max(2, value // 2)
            steps = [d for d in range(-min(reach, 50), min(reach, 50) + 1) if d and value + d >= 0]
            scaled = draw.choice(steps) * max(1, reach // 50) if steps else 1
            other = f"{value + scaled:,}" if "," in match[0] else str(value + scaled)
        return text[: match.start()] + other + text[match.end() :], "number"
    spelled = rf"\b(?:{'|'.join(_NUMBERS[1:])})\b"
    words = _new_first(list(re.finditer(spelled, text)), item.question)
    if not words:
        return None
    match = draw.choice(words)
    other = draw.choice([word for word in _NUMBERS[1:] if word != match[0]])
    return text[: match.start()] + other + text[match.end() :], "number"


def _other_date(item: Item, draw: random.Random) -> tuple[str, str] | None:
    months = list(re.finditer(rf"\b(?:{'|'.join(_MONTHS)})\b", item.reference))
    months = [m for m in months if m[0] != "May" or re.search(r"\d ?$|^ ?\d", m.string[m.end() :])]
    if not months:
        return None
    match = draw.choice(_new_first(months, item.question))
    other = draw.choice([month for month in _MONTHS if month != match[0]])
    return item.reference[: match.start()] + other + item.reference[match.end() :], "date"


def _names(text: str) -> set[tuple[str, bool]]:
    """Names in a text, and whether each stands where places do."""
    return {(match[0], _is_place(match)) for match in _name_matches(text)}


def _is_place(match: re.Match[str]) -> bool:
    """Tells whether a preposition stands before a name: a person would be no trap there."""
    return bool(_PLACE.search(match.string[: match.start()]))


def _name_matches(text: str) -> list[re.Match[str]]:
    matches = []
    for match in _NAME.finditer(text):
        begins = match.start() == 0 or text[: match.start()].rstrip().endswith((".", "!", "?"))
        alone = " " not in match[0] and "-" not in match[0]
        # A single capital word that begins a sentence is a name only where it stands elsewhere too.
        again = text.count(match[0]) > 1
        if match[0].split()[0].lower() in named("starters") or match[0] in _MONTHS:
            continue
        if not (begins and alone and not again) or len(text.split()) <= SHORT_WORDS:
            matches.append(match)
    return matches


def _other_name(
    item: Item, draw: random.Random, names: Sequence[tuple[str, bool]]
) -> tuple[str, str] | None:
    matches = _new_first(_name_matches(item.reference), item.question)
    if not matches:
        return None
    match = draw.choice(matches)
    own = {word.lower() for word in re.findall(r"\w+", f"{item.reference} {item.question}")}

    def alike(candidates: Iterable[tuple[str, bool]]) -> list[str]:
        """Names of the same kind that have no word in common with what is right."""
        return [
            name
            for name, place in candidates
            if place == _is_place(match) and not own & set(name.lower().split())
        ]

    near = alike(sorted(_names(item.snippet)))
    far = [name for name in alike(names) if name not in item.snippet]
    pool = near if near and (draw.random() < 0.5 or not far) else far
    if not pool:
        return None
    other = draw.choice(pool)
    return item.reference[: match.start()] + other + item.reference[match.end() :], "name"


def _other_answer(item: Item, items: Sequence[Item], draw: random.Random) -> tuple[str, str] | None:
    """The reference of another question, with few words in common."""
    own = set(item.reference.lower().split())
    others = []
    for other in items:
        theirs = set(other.reference.lower().split())
        if theirs and len(own & theirs) < 0.4 * min(len(own), len(theirs)):
            others.append(other.reference)
    return (draw.choice(others), "other answer") if others else None

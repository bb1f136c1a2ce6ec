"""Answers that their source supports: its numbers, its names, most of its words.

A check by words, not by meaning: it finds what a small model adds (a wrong year, another general),
and not a true sentence turned around. Names and numbers of the question count as given where the
style asks about wrong ones.
"""

import re

from gchat.synth.filters.reason import Reason
from gchat.synth.words import words

MIN_SHARE = 0.6
"""Share of an answer's words that the source must have."""
_FEW = 5
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NAME = re.compile(r"(?<![.!?:] )(?<!\A)(?<!\n)(?<![“\"(])\b[A-Z][a-z]{2,}\b")
_COMMON = words("small")
_CAPITALS = words("capitals")


def support(source: str, question: str, answer: str, *, wrong: bool = False) -> Reason | None:
    """Reason to drop a record whose answer says what the source does not.

    Args:
        source: sentences of the window, and its title.
        question: asked.
        answer: to check.
        wrong: the style names wrong details in its question on purpose.
    """
    known, asked = _plain(source), _plain(question)
    given = f"{known} {asked}" if wrong else known
    if reason := _added(_plain(answer), "answer", given):
        return reason
    if not wrong and (reason := _added(asked, "question", known)):
        return reason
    counted = _content(answer)
    share = _share(counted, given)
    # "With pleasure: it is Paulus": of few words one must be the source's, or a number.
    few = len(counted) < _FEW
    if share < (1 / _FEW if few else MIN_SHARE) and not (few and _NUMBER.search(answer)):
        return Reason("support", f"{share:.0%} of the answer's words are in the source")
    named = _content(question)
    if not named or not _share(named, known):
        return Reason("support", "no word of the question is in the source")
    if _WORD.findall(question.lower()) == _WORD.findall(answer.lower()):
        return Reason("support", "the answer is the question again")
    return None


def _added(text: str, field: str, known: str) -> Reason | None:
    """A number or name that is not known."""
    numbers, lowered = set(_NUMBER.findall(known)), known.lower()
    for number in _NUMBER.findall(text):
        if number not in numbers and number.strip("0") and not _listed(text, number):
            return Reason("support", f"the {field}'s {number} is not in the source")
    for name in _NAME.findall(text):
        lower = name.lower()
        if name not in _CAPITALS and lower not in _COMMON and lower not in lowered:
            return Reason("support", f"the {field}'s {name!r} is not in the source")
    return None


def _content(text: str) -> list[str]:
    """Words that say something, without those of every text."""
    listed = _WORD.findall(_plain(text).lower())
    return [w for w in listed if w not in _COMMON and len(w) > 2 and "'" not in w.rstrip("s")[:-1]]


def _share(counted: list[str], known: str) -> float:
    """Share of words that are known, endings aside; 1 where there is none."""
    stems = {_stem(word) for word in _WORD.findall(known.lower())}
    return sum(_stem(word) in stems for word in counted) / len(counted) if counted else 1.0


def _plain(text: str) -> str:
    return text.replace("’", "'").replace(" ", " ")


def _listed(text: str, number: str) -> bool:
    """True for the number of an item: "(1)", "1." at the beginning of a line, "[2 marks]"."""
    return bool(re.search(rf"(?:^|\n){number}[.)] |\({number}\)|\[{number} marks?\]", text))


def _stem(word: str) -> str:
    """A word without its ending, so that "commanded" stands for "commander"."""
    word = word.removesuffix("'s").removesuffix("s'")
    for ending in ("ing", "ed", "es", "er", "ly", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word

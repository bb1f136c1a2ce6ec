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
    known = _plain(source)
    given = known + " " + _plain(question)
    for text, field, base in ((answer, "answer", given if wrong else known),
                              (question, "question", None if wrong else known)):  # fmt: skip
        if base is None:
            continue
        numbers = set(_NUMBER.findall(base))
        for number in _NUMBER.findall(text):
            if number not in numbers and number.strip("0") and not _listed(text, number):
                return Reason("support", f"the {field}'s {number} is not in the source")
        lowered = base.lower()
        for name in _NAME.findall(text):
            if (
                name not in _CAPITALS
                and name.lower() not in _COMMON
                and name.lower() not in lowered
            ):
                return Reason("support", f"the {field}'s {name!r} is not in the source")
    words = [w for w in map(str.lower, _WORD.findall(_plain(answer)))
             if w not in _COMMON and len(w) > 2 and "'" not in w]  # fmt: skip
    if not words:
        return None
    stems = {_stem(w) for w in _WORD.findall(given.lower())}
    share = sum(_stem(w) in stems for w in words) / len(words)
    # "With pleasure: it is Paulus": of few words one must be the source's.
    if share < (MIN_SHARE if len(words) >= _FEW else 1 / _FEW):
        return Reason("support", f"{share:.0%} of the answer's words are in the source")
    return None


def _plain(text: str) -> str:
    return text.replace("’", "'").replace(" ", " ")


def _listed(text: str, number: str) -> bool:
    """True for the number of an item: "(1)", "1." at the beginning of a line, "[2 marks]"."""
    return bool(re.search(rf"(?:^|\n){number}[.)] |\({number}\)|\[{number} marks?\]", text))


def _stem(word: str) -> str:
    """A word without its ending, so that "commanded" stands for "commander"."""
    for ending in ("'s", "ing", "ed", "es", "er", "ly", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word

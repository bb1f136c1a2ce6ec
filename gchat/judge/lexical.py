"""A judge without a model: words, names and numbers that an answer shares with its reference.

It knows no paraphrase that has other words, so it fails right answers; its calibration says how
often. It serves tests, machines without a model, and as a floor that a model should beat.
"""

import re

from gchat.judge.items import Item
from gchat.judge.question import Verdict
from gchat.judge.words import named

MODEL = "lexical@1"
_SHARE = 0.5
"""Share of the reference's own words that an answer must have."""
_WORD = re.compile(r"\d[\d,.]*\d|\w+")


def judge(item: Item) -> Verdict:
    """Passes an answer that has the reference's numbers, names and most of its other words."""
    turns = named("turns")
    given, asked = _words(item.answer), set(map(str.lower, _words(item.question)))
    reference = _words(item.reference)
    answer = {word.lower() for word in given}
    own = [word for word in reference if word.lower() not in asked] or reference
    must = [word for word in own if word[0].isdigit() or word[0].isupper()]
    missing = [word for word in must if word.lower() not in answer]
    if missing:
        return Verdict(f"the reference's {missing[0]!r} is missing", False)
    known = asked | {word.lower() for word in reference}
    strange = [word for word in given if word[0].isdigit() and word not in known]
    strange += [w for w in given if w.lower() in turns and w.lower() not in known]
    strange += [w for w in reference if w.lower() in turns and w.lower() not in answer | asked]
    if strange:
        return Verdict(f"{strange[0]!r} stands in one of the two only", False)
    shared = sum(word.lower() in answer for word in own)
    said = f"{shared} of the reference's {len(own)} own words are there"
    return Verdict(said, bool(own) and shared >= _SHARE * len(own))


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if word.lower() not in named("unimportant")]

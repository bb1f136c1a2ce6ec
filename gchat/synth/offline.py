"""The generator without a model: a style's templates filled with facts of the window.

What it writes is grounded by construction and the same every time: for tests, for pipelines on a
CPU, and as the floor that a model's records are compared with.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from gchat.synth.facts import Facts
from gchat.synth.styles import Style
from gchat.synth.windows import Window

MODEL = "offline"


def write(
    window: Window, styles: Sequence[Style], others: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, str]]:
    """Question, answer and fact for each style that has what it needs here, by its name."""
    facts = Facts(window, others)
    made = {}
    for style in styles:
        if not style.fits(facts.counts):
            continue
        fields = facts.fields(style)
        if fields is None:
            continue
        question = _changed(style.question.format(**fields), style.change)
        answer = style.answer.format(**fields)
        made[style.name] = {
            "question": " ".join(question.split(" ")).strip(),
            "answer": answer.strip(),
            "fact": fields["fact"],
        }
    return made


def _changed(question: str, change: str) -> str:
    if change == "small":
        return re.sub(r"[^\w\s]", "", question).lower()
    if change == "capitals":
        return question.upper()
    if change == "typos":
        return typos(question)
    return question


def typos(text: str) -> str:
    """Two letters of every third long word change places; words with a capital or digit stay."""
    words = text.split(" ")
    for i, word in enumerate(words):
        digest = hashlib.blake2b(f"{i} {word}".encode(), digest_size=2).digest()
        if len(word) > 3 and word.isalpha() and word.islower() and digest[0] % 3 == 0:
            at = 1 + digest[1] % (len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)

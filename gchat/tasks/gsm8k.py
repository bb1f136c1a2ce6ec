"""GSM8K: grade school sums in words (Cobbe et al. 2021, arXiv 2110.14168).

An answer notes its calculations as `<<48/2=24>>`: these become calls of the calculator with their
outputs, as `gchat.engine.tools` runs them while a model answers. The final number stands behind
`####`. `gsm8k` counts that mark alone, as nanochat does; `gsm8k_flexible` takes the last number of
an answer without it, for models that were never shown the mark.
"""

import re
from decimal import Decimal

from gchat.conversation import Message, Part
from gchat.tasks import numbers
from gchat.tasks.places import Place
from gchat.tasks.rows import Row
from gchat.tasks.task import Item, user

PLACE = Place("openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee", "main")
_CALL = re.compile(r"<<([^<>]*)>>")


def item(row: Row) -> Item:
    """The item of a row with `question` and `answer`."""
    answer = message(row.text("answer"))
    gold = numbers.marked(answer.content)
    if gold is None:
        raise row.wrong("answer", f"has no number behind {numbers.MARK!r}")
    return Item(row.name, user(row.text("question")), answer, meta={"number": str(gold)})


def message(answer: str) -> Message:
    """A written answer whose `<<expression=result>>` are calls with outputs."""
    parts: list[Part] = []
    for i, piece in enumerate(_CALL.split(answer)):
        expression, equals, result = piece.rpartition("=")
        if i % 2 == 0:
            if piece:
                parts.append(Part("text", piece))
        elif equals and expression.strip() and result.strip():
            parts += [Part("call", expression.strip()), Part("output", result.strip())]
    content = "".join(part.text for part in parts if part.kind == "text")
    called = any(part.kind == "call" for part in parts)
    return Message("assistant", content, tuple(parts) if called else ())


def grade(asked: Item, said: Message) -> float:
    """1 where the number behind the last `####` is the right one."""
    return float(numbers.marked(said.content) == Decimal(asked.meta["number"]))


def grade_flexible(asked: Item, said: Message) -> float:
    """1 where the last number is the right one."""
    return float(numbers.last(said.content) == Decimal(asked.meta["number"]))

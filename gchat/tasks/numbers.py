"""The number that an answer ends with, and whether it is the right one."""

import re
from decimal import Decimal, InvalidOperation

MARK = "####"
"""Stands before the final number, in GSM8K's own answers and in those of models trained on them."""
_NUMBER = r"[-+]?\$?(?:\d[\d,]*\.?\d*|\.\d+)"
_MARKED = re.compile(rf"{MARK}\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)


def marked(text: str) -> Decimal | None:
    """The number behind the last `####`; None where there is none."""
    return _value(_MARKED.findall(text))


def last(text: str) -> Decimal | None:
    """The number behind `####`, or else the last one of the text."""
    there = marked(text)
    return there if there is not None else _value(_ANY.findall(text))


def _value(numbers: list[str]) -> Decimal | None:
    if not numbers:
        return None
    digits = numbers[-1].replace(",", "").replace("$", "").rstrip(".")
    try:
        return Decimal(digits)
    except InvalidOperation:  # only marks, such as "-."
        return None

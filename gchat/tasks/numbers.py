"""The number that an answer ends with, and whether it is the right one."""

import re
from decimal import Decimal, InvalidOperation

MARK = "####"
"""Stands before the final number, in GSM8K's own answers and in those of models trained on them."""
# Behind a digit or a letter - is no sign: 10-3, 2024-05-01, covid-19.
_NUMBER = r"(?:(?<![^\W_])[-+\u2212])?\$?(?:\d[\d,]*\.?\d*|\.\d+)"
_MARKED = re.compile(rf"{MARK}\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)
_CURRENCY = r"[$\u00a2-\u00a5\u20a0-\u20cf]"
_WHOLE = re.compile(
    rf"(?:{MARK}\s*|=\s*)?([-+\u2212]?)\s*{_CURRENCY}?\s*([-+\u2212]?"
    r"(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d+)(?:\.\d*)?|\.\d+))"
    rf"\s*(?:[%\u2030\u00b0]|{_CURRENCY})?"
)
_AROUND = " \t\r\n\"'`*_()[]{}!?;:,"


def marked(text: str) -> Decimal | None:
    """The number behind the last `####`; None where there is none."""
    return _value(_MARKED.findall(text))


def last(text: str) -> Decimal | None:
    """The number behind `####`, or else the last one of the text."""
    there = marked(text)
    return there if there is not None else _value(_ANY.findall(text))


def whole(text: str) -> Decimal | None:
    """The number that a text is and nothing besides: 42, -5, 1,000, $5, 50%; else None.

    A fraction, a time or a date holds several numbers, and its last one does not stand for it.
    """
    match = _WHOLE.fullmatch(text.strip(_AROUND).rstrip(f".{_AROUND}"))
    return _value([match[1] + match[2]]) if match else None


def _value(numbers: list[str]) -> Decimal | None:
    if not numbers:
        return None
    digits = numbers[-1].replace(",", "").replace("$", "").replace("\u2212", "-").rstrip(".")
    try:
        return Decimal(digits)
    except InvalidOperation:  # only marks, such as "-."
        return None

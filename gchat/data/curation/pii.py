"""Addresses and numbers that name a person, replaced by marks; how many of each is counted.

Patterns find the form, not the meaning: names and postal addresses stay. Card numbers must pass
Luhn's check, IP addresses must be public ones.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_EMAIL = re.compile(r"\b[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}"
    r"|\(?\d{3}\)?[ .-]\d{3}[.-]\d{4})(?![\w-])"
)
_SOCIAL = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")


def scrub(text: str) -> tuple[str, Counter[str]]:
    """The text with marks such as <EMAIL>, and how many of each kind there were."""
    marks: Counter[str] = Counter()
    for kind, pattern, counts in _KINDS:
        if kind == "email" and "@" not in text:
            continue

        def mark(match: re.Match[str], kind: str = kind, counts: _Check = counts) -> str:
            if not counts(match[0]):
                return match[0]
            marks[f"pii.{kind}"] += 1
            return f"<{kind.upper()}>"

        text = pattern.sub(mark, text)
    return text, marks


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "")
    number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
    return int(number) % 97 == 1


def _is_phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15


def _always(_: str) -> bool:
    return True


_Check = Callable[[str], bool]
_KINDS: tuple[tuple[str, re.Pattern[str], _Check], ...] = (
    ("email", _EMAIL, _always),
    ("iban", _IBAN, _is_iban),
    ("card", _CARD, _is_card),
    ("ip", _IP, _is_public),
    ("social", _SOCIAL, _always),
    ("phone", _PHONE, _is_phone),
)

"""Texts of others as a database can store them and an answer can carry them."""

import re

_NOWHERE = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of characters: nobody sees them, no database stores them, UTF-8 has no halves."""


def storable(text: str) -> str:
    """A text with a replacement character for each one that can't be stored."""
    return _NOWHERE.sub("\N{REPLACEMENT CHARACTER}", text)

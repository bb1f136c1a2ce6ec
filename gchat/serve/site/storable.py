"""Texts of others as a database can store them and an answer can carry them."""

import json
import re
from typing import Any

_NOWHERE = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of characters: nobody sees them, no database stores them, UTF-8 has no halves."""


def storable(text: str) -> str:
    """A text with a replacement character for each one that can't be stored."""
    return _NOWHERE.sub("\N{REPLACEMENT CHARACTER}", text)


def stored_json(text: str | bytes) -> Any:
    """Reads a JSON column, with a replacement character for each half of one.

    Rows that were written before `storable` was asked hold such halves, escaped.
    """
    text = text.decode() if isinstance(text, bytes) else text
    data = json.loads(text)
    if "\\ud" not in text.lower():
        return data
    return json.loads(storable(json.dumps(data, ensure_ascii=False)))

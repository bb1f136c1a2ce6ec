"""The file of answers to judge: one JSON object per line, every line checked before any is asked.

    {"id": …, "snippet": "…", "question": "…", "reference": "…", "answer": "…"}

or a line of `gchat generate`, whose `meta` holds snippet, question and reference. Other fields that
are texts, such as split and style, are what rates are also given by (`--by`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.ask.questions import object_of

_TEXTS = ("snippet", "question", "reference", "answer")


@dataclass(frozen=True)
class Item:
    """A student's answer, and what it is judged by."""

    number: int
    """Line of the file, counted from 1."""
    snippet: str
    """Source text; may be empty."""
    question: str
    reference: str
    answer: str
    """The student's; empty where it gave none."""
    id: Any = None
    right: bool | None = None
    """Truth, where a person has said it."""
    groups: dict[str, str] = field(default_factory=dict)
    """Other fields that are texts, by name."""

    def digest(self, *more: str) -> str:
        """Fingerprint of what is judged, with anything else that decides the verdict."""
        parts = [self.snippet, self.question, self.reference, self.answer, *more]
        text = json.dumps(parts).encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).hexdigest()


def read(path: Path, *, labelled: bool = False) -> list[Item]:
    """All lines of a file.

    Args:
        path: of the file.
        labelled: each line must say whether its answer is `right`.

    Raises:
        DataError: the file cannot be read, holds no line, or one is no answer; the line is named.
    """
    items = []
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    item = _item(number, raw)
                    if labelled and item.right is None:
                        raise ConfigError(
                            "it does not say whether it is right", 'add "right": true'
                        )
                except ConfigError as error:
                    raise DataError(f"{path}:{number}: {error.problem}", error.remedy) from None
                items.append(item)
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror})", "check it") from None
    if not items:
        raise DataError(f"{str(path)!r} holds no answers", "write one JSON object per line")
    return items


def _item(number: int, raw: bytes) -> Item:
    data = object_of(raw, '{"question": "…", "reference": "…", …}')
    if isinstance(data.get("meta"), dict):  # a line of `gchat generate`
        answer = "" if "error" in data else data.get("text")
        data = {"id": data.get("id"), **data["meta"], "answer": answer}
    texts = {name: _text(data, name) for name in _TEXTS}
    for name in ("question", "reference"):
        if not texts[name].strip():
            raise ConfigError(f"{name} is empty", "give one, or leave the line out")
    right = data.get("right")
    if right not in (None, True, False):
        raise ConfigError(f"right is {right!r}", "use true or false")
    others = {
        name: value
        for name, value in data.items()
        if name not in (*_TEXTS, "id", "right") and isinstance(value, str)
    }
    return Item(number, **texts, id=data.get("id"), right=right, groups=others)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        state = f"{name} is a {type(value).__name__}" if name in data else f"it has no {name}"
        raise ConfigError(state, f"give snippet, question, reference and answer; {name} is a text")
    return value


def grouped(items: Sequence[Item], by: str) -> dict[str, list[Item]]:
    """Items by the value of a field.

    Raises:
        ConfigError: no line has the field.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.groups.get(by, "(none)"), []).append(item)
    if set(groups) == {"(none)"}:
        known = sorted({name for item in items for name in item.groups})
        raise ConfigError(
            f"--by {by!r} names a field that no line has", f"use one of {', '.join(known) or '-'}"
        )
    return dict(sorted(groups.items()))

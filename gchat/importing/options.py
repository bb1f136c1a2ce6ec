"""Checks of the options that a foreign configuration states: what changes the result is refused."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from gchat.importing.source import ImportRefused

REMEDY = "import a model of Llama's or Qwen3's layout"


class Options:
    """Fields of a configuration file, each read with its type.

    Args:
        where: the file, for messages.
        fields: by name.
    """

    def __init__(self, where: Path, fields: Mapping[str, Any]) -> None:
        self.where, self._fields = where, fields

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default where it is missing or null."""
        value = self._fields.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1.

        Raises:
            ImportRefused: missing, or something else.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(name, "needs a whole number of at least 1")
        return int(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above 0.

        Raises:
            ImportRefused: missing, or something else.
        """
        value = self.get(name, default)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not math.isfinite(value) or value <= 0:
            self.refuse(name, "needs a number above 0")
        return float(value)

    def refuse(self, name: str, why: str, remedy: str = REMEDY) -> NoReturn:
        """Raises ImportRefused naming a field and its value."""
        value = self._fields.get(name)
        shown = "missing" if value is None else repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
        raise ImportRefused(f"{self.where}: {name} is {shown}: {why}", remedy)

    def only(self, neutral: Mapping[str, tuple[Any, ...]], why: str = "is not supported") -> None:
        """Raises ImportRefused for the first field whose value is none of those that do nothing."""
        for name, values in neutral.items():
            value = self._fields.get(name)
            if value is not None and value not in values:
                self.refuse(name, why)

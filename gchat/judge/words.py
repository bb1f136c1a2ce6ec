"""Word lists of planted answers and of the judge without a model: words.yaml."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def words() -> dict[str, Any]:
    """All lists by name."""
    text = Path(__file__).with_name("words.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@cache
def named(name: str) -> frozenset[str]:
    """A list that is only asked what is in it."""
    return frozenset(words()[name].split())

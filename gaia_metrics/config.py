"""A run's config as it is kept: without secrets, and flat for tables and the database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(r"(pass(word|wd)?|secret|token|api_?key|credential|authorization)$", re.I)


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without secrets: values under names such as `password` or `hf_token` are hidden.

    Only text is hidden: `max_token: 5` or a nested table called `token` stays.
    """
    clean: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            clean[str(key)] = redact(value)
        elif isinstance(value, str) and value and _SECRET.search(str(key)):
            clean[str(key)] = "(hidden)"
        else:
            clean[str(key)] = value
    return clean


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config as dotted names and text, for the database: {"model.depth": "12"}."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = str(value)[:1000]
    return flat

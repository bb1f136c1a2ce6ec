"""Options of a training as words of a command line."""

from collections.abc import Mapping
from typing import Any


def options(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """`{model.depth: 2}` as `--model.depth=2`; lists become several words."""
    words: list[str] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            words += options({f"{name}.{key}": one for key, one in value.items()})
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return tuple(words)

"""A run's config as it is kept: plain, without secrets, and flat for tables and the database."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gaia_metrics.errors import MetricsError
from gaia_metrics.redaction import HIDDEN, redact_text, redact_value, secret_name

DEEPEST = 40  # tables in tables; a config that holds itself would never end


def redact(config: Any) -> dict[str, Any]:
    """Make a config plain (what JSON holds) and hide its secrets; see redaction.py.

    Under a secret name every text is hidden, at any depth; numbers stay (`max_token: 5`).

    Args:
        config: a table, a dataclass or an argparse.Namespace.

    Raises:
        MetricsError: `config` is none of these.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    elif type(config).__name__ == "Namespace":  # argparse's: its import takes 10 ms
        config = vars(config)
    if not isinstance(config, Mapping):
        raise MetricsError(
            f"config={type(config).__name__} is no table", "pass a dict or a dataclass"
        )
    return _table(config, False, 0)


def _table(table: Mapping[Any, Any], secret: bool, depth: int) -> dict[str, Any]:
    return {
        redact_text(str(key)): _plain(str(key), value, secret or secret_name(str(key)), depth + 1)
        for key, value in table.items()
    }


def _plain(name: str, value: Any, secret: bool, depth: int) -> Any:
    if depth > DEEPEST:
        return "(nested too deep)"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return _table(value, secret, depth)
    if isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        # A header as a pair: ("Authorization", "Bearer …").
        if len(items) == 2 and isinstance(items[0], str) and secret_name(items[0]):
            return [items[0], _plain(items[0], items[1], True, depth + 1)]
        return [_plain(name, item, secret, depth + 1) for item in items]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN
    if secret and not isinstance(value, bool | int | float) and value not in (None, ""):
        return HIDDEN
    plain = redact_value(name, value)
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    return redact_text(str(plain))  # paths, enums, arrays, functions


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

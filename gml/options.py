"""Options of the command line, declared once: on the dataclass field that holds their value.

`gml.cli.signature` builds the command line's signature from these fields, and the request itself
from the values that were typed. No command line library is needed to declare or to read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option as it is typed.

    Attributes:
        flags: its names, `--like-this` first.
        help: one line, verb or noun first.
        typed: type that the command line takes; None for the field's own.
        default: typed value where the option is left out; None for the field's default.
        parse: turns the typed value into the field's; raises UsageError.
        limits: `min` and `max` of a number.
    """

    flags: tuple[str, ...]
    help: str
    typed: Any = None
    default: Any = None
    parse: Callable[[Any], Any] | None = None
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def option(default: Any, *flags: str, help: str, **more: Any) -> Any:
    """Declares a field that is an option too; `more` as in `Option` (default: typed_default)."""
    more["default"] = more.pop("typed_default", None)
    return dataclasses.field(default=default, metadata={"option": Option(flags, help, **more)})


def options_of(kind: type) -> dict[str, Option]:
    """The options that a dataclass declares, by field name, in order."""
    fields = dataclasses.fields(kind)
    return {f.name: f.metadata["option"] for f in fields if "option" in f.metadata}


def from_typed(kind: type[T], values: Mapping[str, Any], **more: Any) -> T:
    """Builds the dataclass from typed values; `more` are fields that are no options.

    Raises:
        UsageError: from the first option whose value cannot be parsed.
    """
    parsed = {}
    for name, item in options_of(kind).items():
        value = values[name]
        parsed[name] = item.parse(value) if item.parse else value
    return kind(**{**parsed, **more})

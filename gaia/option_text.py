"""Text that looks like an option stays text: values are marked by the types of their fields.

An argument parser sees only words, so `--prompt True`, `--prompt -h` or a preset's `"--x"` would be
taken for flags. Here each word that is the value of a text field gets a mark in front before the
parser sees it, and loses it afterwards.
"""

import dataclasses
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from gaia.errors import ConfigError

Kind = Literal[
    "flag", "text", "text or none", "texts", "texts or none", "names", "texts by name", "other"
]  # fmt: skip
"""Kind of a field: bool, str, str | None, tuple of str, a dict of numbers or of str, the rest.
A path is a text here."""

T = TypeVar("T")
_TEXTS = (str, Path)
_MARK = "\x02"


def kinds(cls: Any, prefix: str = "") -> dict[str, Kind]:
    """The kind of each option of a dataclass, by its name as typed (`eval.sample-every`)."""
    hints, known = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}".replace("_", "-"), hints[field.name]
        if dataclasses.is_dataclass(hint):
            known |= kinds(hint, f"{name}.")
        else:
            known[name] = _kind(hint)
    return known


def _kind(hint: Any) -> Kind:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is bool:
        return "flag"
    if hint in _TEXTS:
        return "text"
    if origin in (Union, types.UnionType) and any({t, types.NoneType} == {*parts} for t in _TEXTS):
        return "text or none"
    if origin in (Union, types.UnionType):
        parts = tuple(part for part in parts if part is not types.NoneType)
        one = _kind(parts[0]) if len(parts) == 1 else "other"
        return "texts or none" if one == "texts" else "other" if one == "text" else one
    if origin is tuple and parts[0] in _TEXTS:
        return "texts"
    if origin is dict:
        return "texts by name" if parts[1] in _TEXTS else "names"
    return "other"


def several(cls: Any, prefix: str = "") -> set[str]:
    """Names as typed of the options that take any number of values at once."""
    hints, names = get_type_hints(cls, include_extras=True), set[str]()
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}".replace("_", "-"), hints[field.name]
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
            if tyro.conf.UseAppendAction in marks or tyro.conf.Positional in marks:
                continue  # it takes one value at a time, or has no name
        if dataclasses.is_dataclass(hint):
            names |= several(hint, f"{name}.")
        elif get_origin(hint) is dict or Ellipsis in get_args(hint):
            names.add(name)
    return names


def gathered(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Marked words, where each of the named options stands once, with all that was given to it.

    A parser keeps the last `--set` of a command line, and says nothing of the others.
    """
    kept: list[tuple[str, list[str]]] = []  # an option with the values put behind it
    values: dict[str, list[str]] = {}
    taking: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("_", "-")
            again = name in values
            taking = values.setdefault(name, []) if name in names else None
            if not again:
                kept.append((word, [] if taking is None else taking))
        elif taking is None or word == "-h":
            kept.append((word, []))
        else:
            taking.append(word)
    return [each for word, behind in kept for each in (word, *behind)]


def marked(text: str) -> str:
    """The text as one that no parser takes for an option; unchanged where it is marked already.

    So is one that begins with a slash: it looks like no option, and behind a mark the root of a
    file system would be a slash at the end, which paths drop.
    """
    return text if text.startswith((_MARK, "/")) else _MARK + text


def mark(args: Sequence[str], known: Mapping[str, Kind], aliases: Collection[str]) -> list[str]:
    """A command line whose text values are marked, and whose `--flag True` is a plain flag.

    Args:
        args: of a command line, aliases replaced; `--name=value` is one word still.
        known: kinds of the options.
        aliases: further names of options.

    Raises:
        ConfigError: an option stands where a text is expected.
    """
    return list(_mark(list(args), known, aliases))


def _mark(args: list[str], known: Mapping[str, Kind], aliases: Collection[str]) -> Iterator[str]:
    while args:
        word = args.pop(0)
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("_", "-")
        kind = known.get(name, "other") if word.startswith("--") else "other"
        if equals and word.startswith("--"):
            args.insert(0, value)
        if kind == "flag":
            switch = args[0].lower() if args else ""
            if switch in ("true", "false"):
                args.pop(0)
                group, dot, field = name.rpartition(".")
                option = f"--{group}{dot}no-{field}" if switch == "false" else option
            yield option
            continue
        yield option if equals and word.startswith("--") else word
        if kind in ("text", "text or none") and args:
            _check_is_text(option, args[0], bool(equals), known, aliases)
            text = args.pop(0)
            is_plain = text.startswith("/") or (kind == "text or none" and text == "None")
            yield text if is_plain else _MARK + text
        elif kind == "texts or none" and args[:1] == ["None"] and not equals:
            yield args.pop(0)
        elif kind in ("texts", "texts or none", "names", "texts by name"):
            first, count = bool(equals), 0
            while args and (first or not args[0].startswith("--")):
                text, first = args.pop(0), False
                yield text if kind == "names" and count % 2 else marked(text)
                count += 1
        elif equals and word.startswith("--") and args:
            yield args.pop(0)


def _check_is_text(
    option: str, text: str, is_joined: bool, known: Mapping[str, Kind], aliases: Collection[str]
) -> None:
    name = text.partition("=")[0]
    is_option = name.removeprefix("--").replace("_", "-") in known or name in aliases
    if name.startswith("--") and is_option and not is_joined:
        raise ConfigError(f"{option} has no value", f"write {option}={text} to mean that text")


def unmark(value: T) -> T:
    """The parsed value with its texts as they were given."""
    plain: Any = value
    if isinstance(value, str):
        plain = value.removeprefix(_MARK)
    elif isinstance(value, Path) and str(value).startswith(_MARK):
        plain = Path(str(value).removeprefix(_MARK))
    elif isinstance(value, tuple):
        plain = tuple(unmark(item) for item in value)
    elif isinstance(value, dict):
        plain = {unmark(key): unmark(item) for key, item in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        plain = dataclasses.replace(
            value, **{name: unmark(getattr(value, name)) for name in fields}
        )
    return plain


def without_marks(message: str) -> str:
    """A parser's message as people may read it."""
    return message.replace(_MARK, "")

"""Frozen dataclasses from a YAML preset and command-line overrides, in one way.

A preset's leaves become the same `--group.field value` arguments a person would type, placed
before the person's own (the last one wins). So a preset and a command line share one parser,
one set of types and one kind of error. Where there is no preset, nothing is to be overridden:
`--set a=1 --set b=2` is `--set a=1 b=2`.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from gaia import unique_yaml
from gaia.errors import ConfigError
from gaia.option_text import (
    Kind,
    gathered,
    kinds,
    mark,
    marked,
    several,
    unmark,
    without_marks,
)

T = TypeVar("T")
_HELP = frozenset({"-h", "--help"})
_HELP_LISTS = "--help lists every option with its type"


def parse(
    cls: type[T],
    args: Sequence[str],
    *,
    preset: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    also: Sequence[str] = (),
    adding: Collection[str] | None = None,
) -> T:
    """Builds `cls` from a preset and command-line arguments.

    Args:
        cls: a frozen dataclass, possibly of dataclasses; help comes from attribute docstrings.
        args: arguments such as `["--model.depth", "4", "--training.steps=10"]`.
        preset: nested mapping of the same fields, overridden by `args`.
        aliases: short option -> full option, for example `{"--depth": "--model.depth"}`.
        prog: program name shown in help.
        description: first paragraph of the help.
        also: options that the caller has taken out of `args`, for the nearest name of a typo.
        adding: options of several values which, typed again, add to those; of any other one the
            last counts. Default: all that are no field of a preset.

    Raises:
        ConfigError: naming the option, its value and the nearest valid option.
    """
    known, short = kinds(cls), aliases or {}
    near = [*short, *also]
    given = mark(list(_as_args(preset or {}, known)), known, ())
    adding = adding if adding is not None else several(cls) if preset is None else ()
    words = given + gathered(mark(_long(args, short), known, short), adding)
    help_wanted = not _HELP.isdisjoint(words)
    printed = io.StringIO()
    try:
        if help_wanted:
            # A preset's own values become the defaults that the help shows.
            return tyro.cli(cls, args=words, prog=prog, description=description)
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return unmark(tyro.cli(cls, args=words, prog=prog, description=description))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = without_marks(printed.getvalue())
        raise ConfigError(*(_mistyped(text, words, known, near) or _one_line(text, near))) from None


def asks_for_help(cls: Any, args: Sequence[str], aliases: Mapping[str, str] | None = None) -> bool:
    """Tells a `-h` or `--help` from a text that looks like it; arguments as those of `parse`."""
    known, short = kinds(cls), aliases or {}
    return not _HELP.isdisjoint(mark(_long(args, short), known, short))


def _long(args: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Options by their full names; the words between them as they are."""
    words = []
    for word in args:
        name, equals, value = word.partition("=")
        full = aliases.get(name.replace("_", "-"), name) if word.startswith("--") else name
        words.append(f"{full}{equals}{value}")
    return words


def _as_args(tree: Mapping[str, Any], known: Mapping[str, Kind], prefix: str = "") -> Iterator[str]:
    """A preset's leaves as a person would type them, each text joined to its option."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        kind = known.get(name.replace("_", "-"))
        if isinstance(value, Mapping) and value and kind not in ("names", "texts by name"):
            yield from _as_args(value, known, f"{name}.")
        elif isinstance(value, Mapping) and value:  # `--eval.files name path …`
            yield f"--{name}"
            for key_of_value, one in value.items():
                yield marked(str(key_of_value))
                yield marked(_text(name, one)) if kind == "texts by name" else str(one)
        elif isinstance(value, list | tuple):
            yield f"--{name}"
            yield from (
                marked(_text(name, x)) if kind in ("texts", "texts or none") else str(x)
                for x in value
            )
        elif kind in ("text", "text or none") and value is not None:
            yield f"--{name}={_text(name, value)}"
        elif not isinstance(value, Mapping):
            yield f"--{name}"
            yield str(value)


def _text(name: str, value: Any) -> str:
    """A preset's value of a text field."""
    if isinstance(value, bool):
        raise ConfigError(
            f"{name} is {str(value).lower()}, a truth value to YAML",
            "put it in quotes",
        )
    return str(value)


def _mistyped(
    message: str, words: Sequence[str], known: Mapping[str, Kind], others: Sequence[str]
) -> tuple[str, str] | None:
    """The unknown option that may be why a required one is missing, and the nearest one.

    tyro looks for what is required first, and would not tell of `--ou` when `--out` is not there.
    """
    if "Missing from" not in " ".join(message.split()):
        return None
    options = [f"--{name}" for name in known]
    flags = [name.rpartition(".") for name, kind in known.items() if kind == "flag"]
    options += [f"--{group}{dot}no-{leaf}" for group, dot, leaf in flags]
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if re.fullmatch(r"--\w[\w.-]*", name) and name not in options:
            nearest = get_close_matches(name, [*options, *others], n=1, cutoff=0.7)
            remedy = (
                f"perhaps you meant {nearest[0]} (--help lists all)" if nearest else _HELP_LISTS
            )
            return f"unknown option {name}", remedy
    return None


def _one_line(message: str, others: Sequence[str]) -> tuple[str, str]:
    """Reduces tyro's panel to its first sentence, on one line for people and scripts."""
    blocks = re.split(r"^\s*-{3,}\s*$", message, flags=re.MULTILINE)
    blocks = [" ".join(block.split()) for block in blocks]
    problem = (blocks[1] if len(blocks) > 1 else blocks[0]).rstrip(".")
    if unread := re.match(r"Unrecognized options: (.*)", problem):
        words = [word for word in unread[1].split(", ") if word.startswith("-")]
        problem = f"unknown option {', '.join(words) or unread[1]}"
    named = re.search(r"--[\w.-]*\w", " ".join(blocks[2:3])) if "meant" in message else None
    nearest = [named.group()] if named else []
    if unknown := re.match(r"unknown option (--[\w.-]+)", problem):
        nearest = get_close_matches(unknown[1], others, n=1, cutoff=0.7) or nearest
    if nearest:
        return problem, f"perhaps you meant {nearest[0]} (--help lists all)"
    return problem, _HELP_LISTS


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a preset.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        tree = unique_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r} does not exist", "check the path") from None
    except OSError as error:  # a folder, or a file of somebody else
        problem = f"config {str(path)!r} cannot be read ({error.strerror})"
        raise ConfigError(problem, "check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"config {str(path)!r} is not YAML ({detail})", "mend the file") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config {str(path)!r} is not a mapping", "write `group: {field: value}`")
    return tree


def load_preset(path: Path, shipped: Path) -> dict[str, Any]:
    """Reads a preset, over the one that its key `base` names, if any.

    `base` is a file beside this one or a preset in `shipped`, with or without `.yaml`. What this
    preset sets replaces the base's value field by field, a field's value as a whole.

    Raises:
        ConfigError: as `load_yaml`; or `base` is not a name, is this file, or has a base itself.
    """
    tree = load_yaml(path)
    if "base" not in tree:
        return tree
    name, where = tree.pop("base"), f"base of config {str(path)!r}"
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where} is {name!r}", "name one preset, such as `base: speedrun`")
    file = name if name.endswith(".yaml") else f"{name}.yaml"
    base_path = next((f / file for f in (path.parent, shipped) if (f / file).is_file()), None)
    if base_path is None:
        known = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
        raise ConfigError(f"{where} is {name!r}, which does not exist", f"use a file or: {known}")
    if base_path.resolve() == path.resolve():
        raise ConfigError(f"{where} is that file itself", "name another preset")
    base = load_yaml(base_path)
    if "base" in base:
        raise ConfigError(
            f"{where} is {name!r}, which has a base itself ({base['base']!r})",
            "inherit from a preset that has none",
        )
    merged = dict(base)
    for group, fields in tree.items():
        both = isinstance(fields, Mapping) and isinstance(base.get(group), Mapping)
        merged[group] = {**base[group], **fields} if both else fields
    return merged


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain YAML types, nested as declared."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """The resolved configuration, in declaration order, as a preset that `parse` reads back."""
    return yaml.safe_dump(_plain(to_dict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to `{"model.depth": 4, …}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, as `{"model.depth": (old, new)}`."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}

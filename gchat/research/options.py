"""Options of a training as words of a command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError

OWNED = {
    "training.seed": "--seeds (--seed of research run, `seeds` of a sweep)",
    "data.dir": "--data (`data` of a sweep)",
    "run.dir": "--out",
    "run.name": "the variant's name",
}
"""Fields of a training that an option of the research verbs decides, whatever else is said."""


def options(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """`{model.depth: 2}` as `--model.depth=2`; lists become several words.

    Raises:
        ConfigError: a field that the research verbs decide.
    """
    words: list[str] = []
    for name, value in fields.items():
        if (owned := _full_name(name)) in OWNED:
            raise ConfigError(f"the field {name} is given", f"use {OWNED[owned]}")
        if isinstance(value, Mapping):
            words += options({f"{name}.{key}": one for key, one in value.items()})
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return tuple(words)


def training_words(preset: str, changed: Sequence[str]) -> list[str]:
    """Words of `gchat train` for a preset and `FIELD=VALUE`s.

    Runs start in the folder of their code, so a preset that is a file gets its whole path.

    Raises:
        ConfigError: a word without `=`.
    """
    if bad := [word for word in changed if "=" not in word]:
        raise ConfigError(f"--set {bad[0]!r} is no FIELD=VALUE", "write --set model.depth=2")
    typed = {_full_name(word.partition("=")[0]) for word in changed}
    if owned := sorted(typed & OWNED.keys()):
        raise ConfigError(f"--set {owned[0]} is given", f"use {OWNED[owned[0]]}")
    base = str(Path(preset).resolve()) if Path(preset).is_file() else preset
    return [base, *(f"--{word}" for word in changed)]


def _full_name(name: str) -> str:
    """The field of a name as it is typed: `data-dir` is short for data.dir."""
    from gchat.config import ALIASES  # an agent may break it, and reaches the judge all the same

    option = f"--{name.replace('_', '-')}"
    return ALIASES.get(option, option)[2:].replace("-", "_")

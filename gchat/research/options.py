"""Options of a training as words of a command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gaia.config import flatten
from gaia.errors import ConfigError
from gaia.storage.files import is_remote

OWNED = {
    "training.seed": "--seeds (--seed of research run, `seeds` of a sweep)",
    "data.dir": "--data (`data` of a sweep)",
    "data.text": "--data (`data` of a sweep), a prepared data set that all trainings share",
    "run.dir": "--out",
    "run.name": "the variant's name",
    "checkpoint.dir": "--out: each training keeps checkpoints of its own there",
    "run.mirror": "--out: a folder that all trainings share would mix their files",
}
"""Fields of a training that an option of the research verbs decides, whatever else is said."""
OF_CORPUS = {
    f"data.{name}": "it without --data: a prepared data set has its own"
    for name in ("source", "input", "shards", "tokenizer", "vocab_size", "forced")
}
"""Fields of a corpus to prepare, which one that is prepared has settled."""
PLACES = (
    "checkpoint.dir", "data.cache_dir", "data.mixture", "data.text", "data.tokenizer",
    "eval.chat_tasks", "eval.core_bundle", "eval.files", "training.init_from",
)  # fmt: skip
"""Fields that name files or folders."""
_READ_BY_RUNS = ("data.cache_dir", "data.mixture", "eval.", "training.init_from")


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
    return whole_places(words)


def training_words(
    preset: str, changed: Sequence[str], owned: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Words of `gchat train` for a preset and `FIELD=VALUE`s.

    Runs start in the folder of their code, so a preset that is a file gets its whole path.

    Args:
        preset: of every training.
        changed: values of --set.
        owned: fields that an option of this verb decides, with that option, beside `OWNED`.

    Raises:
        ConfigError: a word without `=`, a field given twice, or one that the verb decides.
    """
    if bad := [word for word in changed if "=" not in word]:
        raise ConfigError(f"--set {bad[0]!r} is no FIELD=VALUE", "write --set model.depth=2")
    names = [field_of(word) for word in changed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--set {twice[0]} is given twice", "give it once")
    decided = {**OWNED, **owned}
    if both := [name for name in names if name in decided]:
        raise ConfigError(f"--set {both[0]} is given", f"use {decided[both[0]]}")
    base = str(Path(preset).resolve()) if Path(preset).is_file() else preset
    return [base, *whole_places([f"--{word}" for word in changed])]


def check_seeds(seeds: Sequence[int], where: str, least: int = 1) -> None:
    """Refuses seeds that no training takes, too few of them, and one that comes twice.

    Args:
        seeds: of the trainings.
        where: what named them, such as `--seeds`.
        least: number of seeds that the verb needs.

    Raises:
        ConfigError: naming `where` and what it is.
    """
    from gchat.ranges import MAX_SEED  # an agent may break it, and reaches the judge all the same

    if len(seeds) < least or len(set(seeds)) != len(seeds):
        remedy = "give two different ones or more" if least > 1 else "give one or more, each once"
        raise ConfigError(f"{where} is {list(seeds)}", remedy)
    if wrong := [seed for seed in seeds if not 0 <= seed <= MAX_SEED]:
        raise ConfigError(f"{where} has {wrong[0]}", f"use 0 to {MAX_SEED}")


def whole_places(words: Sequence[str]) -> tuple[str, ...]:
    """Words of `gchat train` whose relative paths, of what lies here, are whole ones.

    Runs start in the folder of their code, which is not where the words were typed.
    """
    made, field = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            field = _full_name(name[2:])
            made.append(name + equals + (_whole(value) if field in PLACES else value))
        else:
            made.append(_whole(word) if field in PLACES else word)
    return tuple(made)


def refuse_local(changed: Sequence[str]) -> None:
    """Refuses values of --set that name files of this machine, where another one trains.

    Raises:
        ConfigError: naming the field.
    """
    for word in changed:
        value = word.partition("=")[2]
        here = _whole(value) != value or (value.startswith("/") and Path(value).exists())
        if field_of(word) in PLACES and here:
            raise ConfigError(
                f"--set {word} names a file of this machine, and --on trains on another",
                "put it into a bucket (gs://…)",
            )


def refuse_owned(preset: str, fields: Mapping[str, Any]) -> None:
    """Refuses places in a preset that all trainings would share, or that none would take.

    Raises:
        ConfigError: naming the field.
    """
    given = flatten(fields)
    if owned := [n for n in ("checkpoint.dir", "data.text", "run.mirror") if given.get(n)]:
        raise ConfigError(f"{owned[0]} of {preset} is set", f"use {OWNED[owned[0]]}")


def relative_place(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """A field of a preset, and its relative path of what lies here but in no run's folder."""
    for name, value in flatten(fields).items():
        for place in map(str, value if isinstance(value, list) else [value]):
            if name.startswith(_READ_BY_RUNS) and _whole(place) != place:
                return name, place
    return None


def _whole(value: str) -> str:
    """A path as a whole one where something lies there; of `NAME=PATH` and `json:PATH` too."""
    named = re.match(r"json:|\w+=", value)
    for before in ("", named[0] if named else ""):
        place = Path(value.removeprefix(before))
        is_name = value in ("", "gpt2", "bpe") or is_remote(value)
        if not is_name and not place.is_absolute() and place.exists():
            return f"{before}{place.resolve()}"
    return value


def field_of(word: str) -> str:
    """The field that `FIELD=VALUE` or an option of `gchat train` sets, by its full name."""
    return _full_name(word.removeprefix("--").partition("=")[0])


def _full_name(name: str) -> str:
    """The field of a name as it is typed: `data-dir` is short for data.dir."""
    from gchat.config import ALIASES  # as in check_seeds

    option = f"--{name.replace('_', '-')}"
    return ALIASES.get(option, option)[2:].replace("-", "_")

"""The file of `gchat sweep FILE.yaml`.

preset: cpu
data: data/notes            # a prepared data set; default: the preset's corpus, prepared once
set: {training.tokens: 500000}
variants:
  main: {}
  wide: {model.aspect_ratio: 96}
sizes:
  d2: {model.depth: 2}
  d4: {model.depth: 4}
seeds: [1, 2, 3]
early_stop: {at: 0.5, behind: 0.1}
"""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from gaia.config import load_yaml
from gaia.errors import ConfigError
from gchat.research.options import OF_CORPUS, check_seeds, field_of, options
from gchat.research.sweep import EarlyStop, Sweep

_FIELDS = ("preset", "data", "set", "variants", "sizes", "seeds", "early_stop")
_STOP_FIELDS = ("at", "behind")


def read_sweep(path: Path) -> tuple[Sweep, str | None]:
    """The sweep of a file, and the data set that it names.

    Raises:
        ConfigError: naming the field that is unknown or cannot work.
    """
    tree = load_yaml(path)
    _known(f"{path}", tree, _FIELDS)
    preset = tree.get("preset", "cpu")
    named = path.parent / str(preset)
    base = str(named.resolve()) if named.is_file() else str(preset)
    stop = tree.get("early_stop")
    if stop is not None:
        _known(f"{path}: early_stop", stop, _STOP_FIELDS)
        if missing := [name for name in _STOP_FIELDS if name not in stop]:
            raise ConfigError(f"{path}: early_stop lacks {', '.join(missing)}", "give both fields")
    base_set = tree.get("set") or {}
    if not isinstance(base_set, dict):
        raise ConfigError(f"{path}: set is {base_set!r}", "write `set: {field: x}`")
    variants = _groups(path, "variants", tree.get("variants"))
    if not variants:
        raise ConfigError(f"{path} names no variants", "write `variants: {main: {}, …}`")
    seeds = tree.get("seeds", [1, 2, 3])
    if not isinstance(seeds, list) or not all(type(s) is int for s in seeds):
        raise ConfigError(f"{path}: seeds is {seeds!r}", "write a list of whole numbers")
    check_seeds(seeds, f"{path}: seeds")
    sweep = Sweep(
        (base, *options(base_set)),
        variants,
        _groups(path, "sizes", tree.get("sizes")) or {"": ()},
        tuple(seeds),
        EarlyStop(stop["at"], stop["behind"]) if stop else None,
    )
    _check_corpus(path, sweep, tree.get("data") is not None)
    sweep.check()
    data = tree.get("data")
    return sweep, None if data is None else str(data)


def _check_corpus(path: Path, sweep: Sweep, prepared: bool) -> None:
    """Refuses fields of a corpus that no training would follow: all cells have one data set."""
    own = chain(*sweep.variants.values(), *sweep.sizes.values())
    for words, remedy in (
        (own, "move it to `set`: a sweep has one data set"),
        (sweep.arguments if prepared else (), "leave it out: `data` names a prepared data set"),
    ):
        for name in map(field_of, words):
            if name in OF_CORPUS:
                raise ConfigError(f"{path}: {name} is set", remedy)


def _groups(path: Path, name: str, tree: Any) -> dict[str, tuple[str, ...]]:
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(v or {}, dict) for v in tree.values()):
        raise ConfigError(f"{path}: {name} is {tree!r}", f"write `{name}: {{NAME: {{field: x}}}}`")
    made = {str(key): options(value or {}) for key, value in tree.items()}
    if len(made) < len(tree):
        raise ConfigError(f"{path}: {name} has one name twice, as a word and as a number", "rename")
    return made


def _known(where: str, tree: Any, names: Sequence[str]) -> None:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} is {tree!r}", f"write the fields {', '.join(names)}")
    if unknown := [name for name in tree if name not in names]:
        nearest = get_close_matches(str(unknown[0]), names, n=1)
        remedy = f"perhaps you meant {nearest[0]}" if nearest else f"use {', '.join(names)}"
        raise ConfigError(f"{where} has the unknown field {unknown[0]!r}", remedy)

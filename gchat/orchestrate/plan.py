"""A plan: workloads that share one accelerator, read from YAML and checked before any starts.

folder: runs/ww2-work               state and logs; PLAN.work beside the plan when left out
aging: 1.0                          priority that an hour of waiting adds
workloads:
  train:
    command: gchat train ww2 --data-dir data --run-dir runs/ww2
    resume: gchat train --resume --allow-restart --run-dir runs/ww2
    begun: runs/ww2/config.yaml     file that says that `resume` is to be run
    done: runs/ww2/report.md        file that says that nothing is to be run any more
    slice: 2h                       then others have their turn
    priority: 10
  judge:
    command: bash judge.sh
    each: train                     once after each turn of `train`
"""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from gaia import unique_yaml
from gaia.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


@dataclass(frozen=True)
class Workload:
    """One kind of work: a command that runs when its turn comes."""

    name: str
    command: tuple[str, ...]
    resume: tuple[str, ...] = ()
    """Command that goes on with what an earlier turn began; `command` again when left out."""
    begun: str | None = None
    """File whose presence calls for `resume`; any earlier turn does when left out."""
    done: str | None = None
    """File whose presence means that the work is done, whoever did it."""
    priority: float = 0.0
    slice_s: float | None = None
    """Length of a turn, after which the command is asked to stop and waits for its next one."""
    limit_s: float | None = None
    """Longest turn; a longer one is stopped and counts as a failure."""
    grace_s: float = 120.0
    """Time to save and end after being asked to."""
    retries: int = 2
    """Failures in a row after which it is tried once more; then it has failed for good."""
    after: tuple[str, ...] = ()
    """Workloads that must be done first."""
    each: str | None = None
    """Workload after each of whose turns this one runs once."""
    times: int = 1
    """Runs in all; 0 for no end."""
    directory: str = "."
    environment: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """The workload as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Workload":
        """Reads `to_json`'s line."""
        data = json.loads(text)
        for name in ("command", "resume", "after"):
            data[name] = tuple(data[name])
        data["environment"] = tuple((key, value) for key, value in data["environment"])
        return cls(**data)

    def words(self, had_turn: bool) -> list[str]:
        """The command of the next turn; `gchat` is this one.

        Args:
            had_turn: an earlier turn began it.
        """
        begun = Path(self.directory, self.begun).exists() if self.begun else had_turn
        words = list(self.resume if self.resume and begun else self.command)
        return [sys.executable, "-m", "gchat", *words[1:]] if words[0] == "gchat" else words

    @property
    def is_done(self) -> bool:
        """Tells whether the file that says so is there."""
        return self.done is not None and Path(self.directory, self.done).exists()


@dataclass(frozen=True)
class Plan:
    """All workloads of one accelerator."""

    folder: Path
    aging: float
    workloads: tuple[Workload, ...]


def read(path: Path, folder: Path | None = None) -> Plan:
    """Reads and checks a plan.

    Args:
        path: of the YAML file.
        folder: of the state, in place of the plan's own.

    Raises:
        ConfigError: naming the field that cannot work.
    """
    try:
        data = unique_yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"plan {str(path)!r}: {error.strerror}", "check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} is no YAML ({place})", "mend it") from None
    _check_names(f"{path}", data, ("folder", "aging", "workloads"))
    given = data.get("workloads")
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"{path} has no workloads", "add `workloads:` with names and commands")
    aging = data.get("aging", 1.0)
    if not _is_number(aging) or aging < 0:
        raise ConfigError(f"aging is {aging!r}", "use priority points per hour, 0 or more")
    workloads = tuple(workload(str(name), fields) for name, fields in given.items())
    check_links(workloads)
    own = data.get("folder")
    place = folder or (Path(own) if own else path.with_suffix(".work"))
    return Plan(place, float(aging), workloads)


def workload(name: str, given: Any) -> Workload:
    """One workload out of its fields.

    Raises:
        ConfigError: naming the workload and the field.
    """
    where = f"workload {name!r}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where} has no usable name", "use letters, digits, - _ and .")
    known = [field.name.removesuffix("_s") for field in fields(Workload)][1:]
    _check_names(where, given, known)
    if "command" not in given:
        raise ConfigError(f"{where} has no command", "add one")
    made: dict[str, Any] = {"name": name}
    for key, value in given.items():
        try:
            made[key + "_s" * (key in ("slice", "limit", "grace"))] = _READERS[key](value)
        except ValueError as error:
            raise ConfigError(f"{where}: {key} is {value!r}", str(error)) from None
    if made.get("slice_s") and made.get("limit_s") and made["slice_s"] >= made["limit_s"]:
        raise ConfigError(f"{where}: slice is not below limit", "a slice ends in peace: shorten it")
    if made.get("each") and "times" in made:
        raise ConfigError(f"{where} has both each and times", "drop one of them")
    if made.get("done") and (made.get("each") or made.get("times", 1) != 1):
        raise ConfigError(f"{where} is to run again, and has a file `done`", "drop one of them")
    return Workload(**made)


def check_links(workloads: Sequence[Workload]) -> None:
    """Raises ConfigError where a workload waits for one that is not there, or for itself."""
    names = {one.name for one in workloads}
    before = {one.name: {*one.after, *([one.each] if one.each else [])} for one in workloads}
    for name, needed in before.items():
        for unknown in sorted(needed - names):
            near = get_close_matches(unknown, names, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
            raise ConfigError(f"workload {name!r} waits for {unknown!r}, which is none", remedy)
    left = dict(before)
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    if left:
        circle = ", ".join(sorted(left))
        raise ConfigError(
            f"the workloads {circle} wait for each other", "drop an `after` or `each`"
        )


def _check_names(where: str, data: Any, known: Sequence[str]) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is a {type(data).__name__}", f"write {', '.join(known[:3])}: …")
    for name in data:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"
            raise ConfigError(f"{where} has an unknown field {name!r}", remedy)


def duration(value: Any) -> float:
    """Seconds of `90s`, `30m`, `2h`, `1d` or a number of seconds; ValueError for anything else."""
    if _is_number(value) and value > 0:
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError("write a time such as 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(value: Any) -> tuple[str, ...]:
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"mend its quotes ({error})") from None
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise ValueError("write a command line, or a list of words")
    return tuple(words)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("write a text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("write a list of names")
    return tuple(names)


def _number(value: Any) -> float:
    if not _is_number(value):
        raise ValueError("write a number")
    return float(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("write a whole number, 0 or more")
    return value


def _environment(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ValueError("write NAME: value pairs")
    return tuple((str(name), str(text)) for name, text in value.items())


_READERS = {
    "command": _words, "resume": _words, "begun": _text, "done": _text, "priority": _number,
    "slice": duration, "limit": duration, "grace": duration, "retries": _count, "after": _names,
    "each": _text, "times": _count, "directory": _text, "environment": _environment,
}  # fmt: skip

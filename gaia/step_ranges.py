"""A number that changes at certain steps, as an option's texts: `0.05@2epochs 0.01@9000`.

Each text says a value and the step, or the epoch, from which it holds; before the first of them
the field's own value does.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from gaia.errors import ConfigError

_FORM = re.compile(r"([^@]+)@(\d+(?:\.\d+)?)(epochs?)?")


class Change(NamedTuple):
    """A value and where it begins."""

    value: float
    at: float
    """Finished steps, or epochs."""
    in_epochs: bool


def read_changes(field: str, texts: Sequence[str]) -> list[Change]:
    """The changes that an option's texts say.

    Raises:
        ConfigError: a text of another form, a value below 0, or steps that do not ascend.
    """
    changes = []
    for text in texts:
        match = _FORM.fullmatch(text)
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not 0 <= value < math.inf:
            raise ConfigError(
                f"{field} has {text!r}", "write VALUE@STEP or VALUE@Nepochs, as in 0.05@2epochs"
            )
        changes.append(Change(value, float(match[2]), match[3] is not None))
    for kind in (True, False):
        places = [change.at for change in changes if change.in_epochs is kind]
        if places != sorted(set(places)):
            raise ConfigError(f"{field} is {' '.join(texts)}", "put the changes in order of steps")
    return changes


def check_changes(field: str, texts: Sequence[str], steps: int) -> None:
    """Raises ConfigError for texts that cannot be read, and for a change at a step behind a run of
    `steps` steps; where an epoch begins is not known here."""
    for change, text in zip(read_changes(field, texts), texts, strict=True):
        if not change.in_epochs and change.at >= steps:
            raise ConfigError(
                f"{field} has {text}, and the run has only {steps} steps",
                "choose an earlier step, or leave it out",
            )


def in_steps(field: str, texts: Sequence[str], steps_per_epoch: float) -> tuple[str, ...]:
    """The same texts with every epoch as the step at which it begins.

    Raises:
        ConfigError: as `read_changes`.
    """
    changes = read_changes(field, texts)
    at = [round(c.at * steps_per_epoch) if c.in_epochs else int(c.at) for c in changes]
    resolved = tuple(f"{c.value:g}@{step}" for c, step in zip(changes, at, strict=True))
    read_changes(field, resolved)  # their order, now that all are steps
    return resolved


def stepwise(first: float, texts: Sequence[str], field: str) -> float | Callable[[Any], Any]:
    """The number as a function of finished steps; `first` itself where nothing changes.

    Raises:
        ConfigError: as `read_changes`, or a change is still in epochs.
    """
    changes = read_changes(field, texts)
    if any(change.in_epochs for change in changes):
        raise ConfigError(
            f"{field} is {' '.join(texts)}, and nothing says how many steps an epoch has",
            "write steps, as in 0.05@2000",
        )
    if not changes:
        return first

    def at(step: Any) -> Any:
        value = jnp.asarray(first, jnp.float32)
        for change in changes:
            value = jnp.where(step >= change.at, change.value, value)
        return value

    return at

"""Choice of the one field, among several that say how long a run trains, which decides.

Of these the first that is set decides; but what is typed decides before all that files set, and a
preset before the one that it is based on.
"""

from collections.abc import Collection, Mapping
from typing import Any

from gaia.errors import ConfigError

LENGTHS = ("steps", "tokens", "tokens_per_param")
"""Fields of the group `training`, the strongest first."""


def with_own_length(tree: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A preset merged with its base, of whose lengths only its own are left where it has any."""
    training = own.get("training")
    if not isinstance(training, Mapping) or not set(training) & set(LENGTHS):
        return dict(tree)
    return {**tree, "training": {**_without_lengths(tree), **training}}


def typed_lengths(options: Collection[str]) -> list[str]:
    """Lengths among the full names of options, such as `--training.tokens-per-param`."""
    return [name for name in LENGTHS if f"--training.{name.replace('_', '-')}" in options]


def with_typed_length(tree: Mapping[str, Any], options: Collection[str]) -> dict[str, Any]:
    """A preset without its lengths where one is typed.

    Args:
        tree: of the preset.
        options: full names of those typed.

    Raises:
        ConfigError: two are typed.
    """
    typed = typed_lengths(options)
    if len(typed) > 1:
        raise ConfigError(
            f"training.{typed[0]} and training.{typed[1]} are both given", "give one of them"
        )
    return {**tree, "training": _without_lengths(tree)} if typed else dict(tree)


def _without_lengths(tree: Mapping[str, Any]) -> dict[str, Any]:
    training = tree.get("training") or {}
    return {name: value for name, value in training.items() if name not in LENGTHS}

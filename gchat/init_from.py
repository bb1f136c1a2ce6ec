"""The model of a run that begins with another run's parameters: that run's (`--init-from`)."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaia.config import load_yaml
from gaia.errors import ConfigError

_OPTIONS = ("--init-from", "--training.init-from")


def with_model_of_base(
    tree: Mapping[str, Any], args: Sequence[str], config_name: str
) -> dict[str, Any]:
    """A preset with the model of the run that --init-from names, where it is typed.

    Args:
        tree: of the preset.
        args: the command line.
        config_name: name of the configuration in a run's folder.

    Raises:
        ConfigError: no run lies there.
    """
    given = typed_bases(args)
    if not given:
        return dict(tree)
    path = Path(given[-1]) / config_name
    if not path.exists():
        raise ConfigError(
            f"training.init_from is {given[-1]!r}, which holds no run", "give the folder of a run"
        )
    return {**tree, "model": load_yaml(path).get("model") or {}}


def typed_bases(args: Sequence[str]) -> list[str]:
    """Values of --init-from, typed as `--option value` or `--option=value`, in order."""
    values = []
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in _OPTIONS:
            values.append(value if equals else following)
    return values

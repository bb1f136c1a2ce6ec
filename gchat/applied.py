"""Ideas (`gchat/research/examples`) that are applied to this code, and those that a run needs.

The patch of an idea says so in one line, beside its code and wherever that goes, also by a merge:

    IDEA_SOFTCAP = "model"      another function: no other code may read the model
    IDEA_Z_LOSS = "training"    another update: --resume needs it, who reads the model does not
    IDEA_BAGS = "phases"        the same, by shares of the run's steps: --extend would move them

Main has no such line. `config.yaml` of a run lists what its code had, because nothing else would
tell: most ideas leave parameters behind that other code lacks, but a cap or a norm leaves nothing.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaia.config import load_yaml
from gaia.errors import CheckpointError, ConfigError

FIELD = "ideas"
"""Key of config.yaml: names of ideas, and what each changes."""
MODEL, PHASES = "model", "phases"
_MARK = "IDEA_"


def applied() -> dict[str, str]:
    """Names of the ideas in the modules that are loaded, sorted, and what each changes."""
    ideas: dict[str, str] = {}
    for name, module in list(sys.modules.items()):  # copies: a thread may be importing
        if name.partition(".")[0] in ("gaia", "gchat"):
            for mark, what in list(vars(module).items()):
                if mark.startswith(_MARK):
                    ideas[mark.removeprefix(_MARK).lower().replace("_", "-")] = str(what)
    return dict(sorted(ideas.items()))


def recorded() -> str:
    """The applied ideas as lines of config.yaml; empty in main."""
    lines = [f"  {name}: {what}\n" for name, what in applied().items()]
    return "".join([f"{FIELD}:\n", *lines]) if lines else ""


def options(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.yaml without its ideas, which are no options."""
    return {name: fields for name, fields in tree.items() if name != FIELD}


def check(config: Path, *, to_train: bool = False) -> None:
    """Refuses a run whose ideas this code lacks; a run that says nothing has none.

    Args:
        config: file of the run; where it is missing, that is for others to say.
        to_train: the run is to go on, which takes all of its ideas; else those of the model count.

    Raises:
        CheckpointError: naming them, and the command that has them.
        ConfigError: the file cannot be read.
    """
    ideas = load_yaml(config).get(FIELD) if config.exists() else None
    if not isinstance(ideas, Mapping):
        return
    own = applied()
    needed = [str(name) for name, what in ideas.items() if to_train or what == MODEL]
    if missing := [name for name in needed if name not in own]:
        raise CheckpointError(
            f"{str(config.parent)!r} was trained with ideas that this code lacks: "
            f"{', '.join(missing)}",
            f"use gchat research with +{'+'.join(map(str, ideas))} VERB …",
        )


def check_extension() -> None:
    """Raises ConfigError where an idea divides a run's steps, which an extension would move."""
    if phases := [name for name, what in applied().items() if what == PHASES]:
        raise ConfigError(
            f"--extend is given, and {', '.join(phases)} trains by shares of all steps, which "
            "would begin again",
            "leave out --extend, or begin another run with more steps",
        )

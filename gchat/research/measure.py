"""Fields of a configuration that decide what the figures of its run mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gaia.config import flatten
from gaia.errors import GaiaError
from gchat.config import CONFIG

SAME = ("data.", "eval.tokens", "eval.stride_fraction", "eval.files", "model.seq_len")
"""Fields of the resolved configuration that must agree, or the figures mean different things."""
PLACES = ("data.cache_dir",)


def measure_of(run_dir: Path) -> dict[str, Any]:
    """Reads the fields of a run's configuration that decide how it is measured.

    Raises:
        GaiaError: the run has lost its configuration.
    """
    try:
        tree = yaml.safe_load((run_dir / CONFIG).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise GaiaError(f"{run_dir} lost its {CONFIG} ({error})", "train again") from None
    return measure(flatten(tree))


def measure(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a configuration's flat fields."""
    return {
        name: value
        for name, value in fields.items()
        if name.startswith(SAME) and name not in PLACES
    }

"""The run that trainings begin with (`training.init_from`), by its content."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from gaia.config import load_yaml
from gaia.errors import ConfigError
from gaia.seal import CHECKSUMS
from gaia.storage.files import exists, join, list_names, read_bytes
from gchat.config import CHECKPOINTS, CONFIG
from gchat.init_from import typed_bases
from gchat.research.cells import preset_fields


def start_hash(arguments: Sequence[str]) -> str:
    """Hash of the checkpoint that `training.init_from` begins with; empty where nothing does.

    Args:
        arguments: of `gchat train`, the preset first.

    Raises:
        ConfigError: the folder holds no run, or no finished checkpoint.
    """
    of_preset = ((preset_fields(arguments) or {}).get("training") or {}).get("init_from")
    place = (typed_bases(arguments) or [of_preset])[-1]
    if not place or place == "None":
        return ""
    tree = load_yaml(Path(place) / CONFIG)  # its code may know fields that this one does not
    named, mirror = (
        (tree.get(group) or {}).get(name)
        for group, name in (("checkpoint", "dir"), ("run", "mirror"))
    )
    folder = named or join(mirror or place, CHECKPOINTS)
    steps = sorted((int(name) for name in list_names(folder) if name.isdecimal()), reverse=True)
    seals = (join(folder, str(step), CHECKSUMS) for step in steps)
    if (seal := next((seal for seal in seals if exists(seal)), None)) is None:
        raise ConfigError(
            f"training.init_from is {place!r}, which holds no finished checkpoint",
            "give the folder of a run that has one",
        )
    return hashlib.sha256(read_bytes(seal)).hexdigest()

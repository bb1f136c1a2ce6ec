"""Ideas by name: folders of `examples/` with a patch, options, or other ideas.

    examples/NAME/change.patch     a change of this repository's code, as `git apply` takes it
    examples/NAME/idea.yaml        options and parts, where it has any:
        preset: cpu                  of `gchat research with +NAME train`, where none is named
        parts: [smear, softcap]      other ideas, applied first
        set: {optim.embed_lr: 0.3}   options of `gchat train`

An idea is written `+NAME` wherever a branch may stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gaia.config import load_yaml
from gaia.errors import ConfigError
from gchat.research.options import OF_CORPUS, field_of, options

FOLDER = Path(__file__).with_name("examples")
PATCH, SETTINGS = "change.patch", "idea.yaml"
_FIELDS = ("preset", "parts", "set")


@dataclass(frozen=True)
class Idea:
    """A named change.

    Attributes:
        name: of its folder.
        patches: files to apply, in order; those of its parts come first.
        options: of `gchat train`, those of its parts first.
        preset: that it is meant for, if any.
    """

    name: str
    patches: tuple[Path, ...]
    options: tuple[str, ...] = ()
    preset: str | None = None


def names(folder: Path | None = None) -> list[str]:
    """The ideas that there are."""
    return sorted(p.parent.name for p in (folder or FOLDER).glob("*/README.md"))


def title(name: str) -> str:
    """First line of an idea's page."""
    return (FOLDER / name / "README.md").read_text().partition("\n")[0].lstrip("# ")


def read(name: str, folder: Path | None = None, *, within: Sequence[str] = ()) -> Idea:
    """Reads an idea with its parts.

    Args:
        name: of its folder.
        folder: that holds the folders; the shipped ones when left out.
        within: ideas that it is a part of.

    Raises:
        ConfigError: there is none of that name, or its settings cannot work.
    """
    folder = folder or FOLDER
    known = names(folder)
    if name not in known:
        nearest = get_close_matches(name, known, n=1)
        remedy = f"perhaps you meant +{nearest[0]}" if nearest else f"use {', '.join(known)}"
        raise ConfigError(f"+{name} is no idea", remedy)
    if name in within:
        raise ConfigError(f"the idea {name} is a part of itself", f"mend {folder / name}")
    place, settings = folder / name, {}
    if (place / SETTINGS).exists():
        settings = _checked(place / SETTINGS)
    parts = [read(part, folder, within=(*within, name)) for part in settings.get("parts", [])]
    own = (place / PATCH,) if (place / PATCH).exists() else ()
    return Idea(
        name,
        (*(patch for part in parts for patch in part.patches), *own),
        (*(o for part in parts for o in part.options), *options(settings.get("set", {}))),
        settings.get("preset"),
    )


def _checked(path: Path) -> dict[str, Any]:
    """The settings of an idea.

    Raises:
        ConfigError: a field is unknown or of another kind.
    """
    settings = dict(load_yaml(path))
    for field, value in settings.items():
        if field not in _FIELDS:
            nearest = get_close_matches(field, _FIELDS, n=1) or [", ".join(_FIELDS)]
            raise ConfigError(f"{path}: unknown field {field!r}", f"use {nearest[0]}")
        kind = {"preset": str, "set": dict}.get(field, list)
        if not isinstance(value, kind):
            raise ConfigError(f"{path}: {field} is {value!r}", f"write a {kind.__name__}")
    for word in options(settings.get("set", {})):
        if (name := field_of(word)) in OF_CORPUS:
            raise ConfigError(f"{path}: {name} is set", "leave it out: branches share one data set")
    return settings

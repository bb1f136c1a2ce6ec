"""Labels of the archive's models: facts read from their runs, and what people say of them."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gaia import storage
from gaia.errors import ConfigError, DataError

FILE = "model.json"
Status = Literal["candidate", "good", "not_good", "broken", "collapsed", "superseded"]
STATUSES = get_args(Status)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,99}")


@dataclass(frozen=True)
class Card:
    """A model's label. `facts` follow from the run; status and notes are people's."""

    name: str
    status: str
    added: float
    """Seconds since 1970."""
    facts: dict[str, Any]
    """run, step, stage, params, tokens, sizes, data, tokenizer, weights, commit, …"""
    metrics: dict[str, Any]
    """Figures at this very step, by name."""
    lineage: list[dict[str, Any]]
    """Runs that it comes from, the first one first, itself left out."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    """{"time", "text"}, oldest first."""

    def noted(self, text: str | None, status: str | None) -> "Card":
        """The card with one more note, or another status."""
        notes = self.notes if text is None else [*self.notes, {"time": time.time(), "text": text}]
        return replace(self, notes=notes, status=status or self.status)


def write(folder: Path, card: Card) -> None:
    """Writes a card into a model's folder, whole or not at all."""
    storage.write_text(folder / FILE, json.dumps(asdict(card), indent=1) + "\n")


def read(folder: Path) -> Card:
    """The card in a model's folder.

    Raises:
        DataError: there is none that can be read.
    """
    path = folder / FILE
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no card of a model ({error})", "remove the folder") from None


def every(archive: Path) -> list[Card]:
    """All cards of an archive, oldest first; what is being added is left out."""
    folders = sorted(archive.iterdir()) if archive.is_dir() else []
    cards = [read(one) for one in folders if one.name[0] != "." and (one / FILE).is_file()]
    return sorted(cards, key=lambda card: (card.added, card.name))


def folder_of(archive: Path, name: str) -> Path:
    """The folder of a model.

    Raises:
        ConfigError: there is none of that name.
    """
    folder = archive / name
    if not NAME.fullmatch(name) or not (folder / FILE).is_file():
        known = ", ".join(card.name for card in every(archive)) or "none yet"
        raise ConfigError(f"{str(archive)!r} holds no model {name!r}", f"it holds {known}")
    return folder


def descendants(archive: Path, name: str) -> list[str]:
    """Names of models that come from another one."""
    return [
        card.name
        for card in every(archive)
        if any(one.get("model") == name for one in card.lineage)
    ]


def table(cards: Sequence[Card]) -> str:
    """One line a model."""
    head = ("model", "status", "stage", "params", "step", "val bpb", "judge", "added", "last note")
    rows: list[tuple[str, ...]] = [head]
    for card in cards:
        facts, metrics = card.facts, card.metrics
        bpb, judge = metrics.get("val_bpb"), metrics.get("judge")
        rows.append((
            card.name, card.status, str(facts["stage"]), f"{facts['params'] / 1e6:,.1f}M",
            f"{facts['step']:,}", "-" if bpb is None else f"{bpb:.4f}",
            "-" if judge is None else f"{judge['rate']:.1%}",
            time.strftime("%Y-%m-%d", time.localtime(card.added)),
            card.notes[-1]["text"] if card.notes else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def described(card: Card) -> str:
    """Everything on a card, for people."""
    lines = [f"{card.name}: {card.status}"]
    for name, value in {**card.facts, **card.metrics}.items():
        lines.append(f"  {name:<14} {_short(value)}")
    origin = " → ".join(_origin(one) for one in card.lineage)
    lines.append(f"  {'lineage':<14} {origin + ' → this' if origin else 'trained from nothing'}")
    for note in card.notes:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(note["time"]))
        lines.append(f"  {when}  {note['text']}")
    return "\n".join(lines)


def _origin(one: dict[str, Any]) -> str:
    named = one.get("model") or one.get("run") or one.get("source")
    step = "" if one.get("step") is None else f" step {one['step']:,}"
    return f"{one.get('stage', '?')} {named}{step}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    return str(value)

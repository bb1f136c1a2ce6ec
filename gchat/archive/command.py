"""`gchat models add|ls|show|compare|note|rm`: an archive of models with honest labels."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import CheckpointError, ConfigError
from gchat.archive import card as cards
from gchat.archive.card import Status

VARIABLE = "GAIA_MODELS"


@dataclass(frozen=True, kw_only=True)
class _Of:
    archive: Path | None = None
    """Folder of the archive; that of the variable GAIA_MODELS, or ./models, when left out."""
    json: bool = False
    """Print one JSON object."""

    @property
    def place(self) -> Path:
        """The archive's folder."""
        return self.archive or Path(os.environ.get(VARIABLE) or "models")

    def say(self, facts: Any, text: str) -> None:
        """Prints what came out."""
        print(json.dumps(facts) if self.json else text)


@dataclass(frozen=True)
class Add(_Of):
    """Copy a run's parameters into the archive, with a card that says exactly what they are.

    gchat models add runs/ww2 --step best --note "first one that answers dates"
    gchat models add runs/ww2 --name ww2_73M_collapsed --status collapsed
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    step: str = "last"
    """Checkpoint: a number of steps, best (lowest validation bits per byte) or last."""
    name: str | None = None
    """Name of the model; run, size, stage, step and validation when left out."""
    status: Status = "candidate"
    """Word on how it is."""
    note: str | None = None
    """Remark to begin with."""

    def start(self) -> None:
        """Adds the model and prints its name."""
        from gchat.archive import snapshot

        card = snapshot.add(
            self.place, self.run, step=self.step, name=self.name, status=self.status, note=self.note
        )
        self.say(asdict(card), f"{self.place / card.name}\n{cards.described(card)}")


@dataclass(frozen=True)
class Ls(_Of):
    """List the models of the archive, oldest first.

    gchat models ls --status good
    """

    status: Status | None = None
    """Only models of this status."""

    def start(self) -> None:
        """Prints the list."""
        kept = [c for c in cards.every(self.place) if self.status in (None, c.status)]
        of = "" if self.status is None else f" with status {self.status}"
        text = cards.table(kept) if kept else f"{self.place} holds no model{of}"
        self.say({"archive": str(self.place), "models": [asdict(c) for c in kept]}, text)


@dataclass(frozen=True)
class Show(_Of):
    """Show all that is known of a model: facts, figures, lineage, notes.

    gchat models show ww2-177M-base-step6184 --verify
    """

    name: tyro.conf.Positional[str]
    """Name of the model."""
    verify: bool = False
    """Read all parameters, and compare their hash with the card."""

    def start(self) -> None:
        """Prints the card.

        Raises:
            CheckpointError: the parameters are not those that the card names.
        """
        folder = cards.folder_of(self.place, self.name)
        card = cards.read(folder)
        if self.verify:
            from gchat.archive import snapshot
            from gchat.run.loading import load_run

            weights = snapshot.digest(load_run(str(folder)).params)
            if weights != card.facts["weights"]:
                raise CheckpointError(
                    f"the weights of {self.name!r} are {weights[:16]}…, its card names "
                    f"{card.facts['weights'][:16]}…",
                    "take the model from a copy",
                )
        said = "\n  weights verified" if self.verify else ""
        more = {"folder": str(folder), "verified": self.verify}
        self.say(asdict(card) | more, cards.described(card) + said)


@dataclass(frozen=True)
class Note(_Of):
    """Say something about a model, or change its status.

    gchat models note ww2-177M-base-step6184 "knows dates, mixes up generals" --status good
    """

    name: tyro.conf.Positional[str]
    """Name of the model."""
    text: tyro.conf.Positional[str | None] = None
    """Remark."""
    status: Status | None = None
    """Word on how it is; as it was when left out."""

    def start(self) -> None:
        """Writes the card."""
        if self.text is None and self.status is None:
            raise ConfigError("neither a text nor --status is given", "say one of them")
        folder = cards.folder_of(self.place, self.name)
        card = cards.read(folder).noted(self.text, self.status)
        cards.write(folder, card)
        self.say(asdict(card), cards.described(card))


@dataclass(frozen=True)
class Rm(_Of):
    """Remove a model from the archive; one that others come from only with --force.

    gchat models rm ww2-33M-base-step400
    """

    name: tyro.conf.Positional[str]
    """Name of the model."""
    force: bool = False
    """Remove it although others come from it."""

    def start(self) -> None:
        """Removes the folder."""
        folder = cards.folder_of(self.place, self.name)
        others = cards.descendants(self.place, self.name)
        if others and not self.force:
            raise ConfigError(
                f"{', '.join(others)} come from {self.name!r}", "add --force to remove it anyway"
            )
        gone = self.place / f".{self.name}.removed"
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)  # at once gone for everybody else
        shutil.rmtree(gone)
        self.say({"removed": self.name}, f"{folder} is removed")


@dataclass(frozen=True)
class Compare(_Of):
    """Ask several models the same, and show figures and answers side by side.

    gchat models compare ww2-a ww2-b --prompt "Who commanded the 6th Army?" --html ab.html
    """

    names: tyro.conf.Positional[tuple[str, ...]]
    """Names of models, or folders of runs."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Prompt; may be given again for more."""
    prompts: Path | None = None
    """File of prompts: a line each, or .jsonl with "prompt"."""
    max_tokens: int = 100
    """Limit of the tokens of an answer."""
    temperature: float = 0.0
    """0 always takes the most likely token."""
    seed: int = 0
    """Same seed, same answers."""
    html: Path | None = None
    """File for the same as a page."""

    def start(self) -> None:
        """Asks, prints, and writes the page."""
        from gchat.archive import compare
        from gchat.engine.requests import SamplingConfig

        if len(set(self.names)) < 2:
            raise ConfigError("fewer than two models are named", "name two or more")
        if self.html is not None and not self.html.parent.is_dir():
            raise ConfigError(f"the folder {str(self.html.parent)!r} does not exist", "make it")
        if self.max_tokens < 1:
            raise ConfigError(f"--max-tokens is {self.max_tokens}", "use 1 or more")
        sampling = SamplingConfig(temperature=self.temperature, seed=self.seed)
        sampling.check()
        texts = compare.prompts(self.prompt, self.prompts)
        places = {name: self._folder(name) for name in dict.fromkeys(self.names)}
        known = {n: cards.read(p) if (p / cards.FILE).is_file() else None
                 for n, p in places.items()}  # fmt: skip
        answers = {
            name: compare.ask(str(place), texts, sampling, self.max_tokens)
            for name, place in places.items()
        }
        made = compare.Compared(texts, answers, known)
        if self.html is not None:
            self.html.write_text(compare.page(made), encoding="utf-8")
        facts = {
            "prompts": texts,
            "answers": answers,
            "cards": {name: card and asdict(card) for name, card in known.items()},
        }
        self.say(facts, compare.described(made))

    def _folder(self, name: str) -> Path:
        """A model's folder, or that of a run."""
        if (self.place / name / cards.FILE).is_file() or not (Path(name) / "config.yaml").is_file():
            return cards.folder_of(self.place, name)
        return Path(name)


VERBS = {"add": Add, "ls": Ls, "show": Show, "compare": Compare, "note": Note, "rm": Rm}

"""Options of `gchat data curate`."""

import dataclasses
import fnmatch
import hashlib
from pathlib import Path
from typing import Any, Literal

from gaia import storage
from gaia.errors import ConfigError
from gaia.seal import CHECKSUMS
from gchat.data.curation.near import Duplicates
from gchat.data.curation.repetition import Repetition
from gchat.data.curation.rules import C4, FineWeb, Gopher
from gchat.data.curation.web import Web
from gchat.data.sources.choose import Source

Family = Literal["web", "c4", "gopher", "repetition", "fineweb"]
FAMILIES: tuple[Family, ...] = ("web", "c4", "gopher", "repetition", "fineweb")


SCORERS = ("ngram", "run", "kenlm")


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The perplexity filter; off without a scorer."""

    scorer: str | None = None
    """ngram:FILE (a bigram of our own, counted on this good text), run:DIR (a trained run of gchat)
    or kenlm:MODEL."""
    max_bpb: float | None = None
    """Drop documents above so many bits per byte."""
    min_bpb: float | None = None
    """Drop documents below: boilerplate is too easy."""
    drop_worst: float = 0.0
    """Drop this share of the documents, those with most bits per byte."""

    def check(self) -> None:
        """Refuses bounds without a scorer and a scorer without bounds."""
        bounds = self.max_bpb is not None or self.min_bpb is not None or self.drop_worst > 0
        if bounds != (self.scorer is not None):
            raise ConfigError(
                "perplexity: a scorer needs a bound, and a bound a scorer",
                "give --perplexity.scorer and --perplexity.max-bpb or --perplexity.drop-worst",
            )
        if not 0 <= self.drop_worst < 1:
            raise ConfigError(f"drop_worst = {self.drop_worst} is out of range", "use e.g. 0.1")
        if self.scorer is not None and self.scorer.partition(":")[0] not in SCORERS:
            raise ConfigError(
                f"scorer = {self.scorer!r} is unknown", "use ngram:FILE, run:DIR or kenlm:MODEL"
            )


@dataclasses.dataclass(frozen=True)
class _Out:
    out: Path
    """Folder for part-*.jsonl.zst, report.md, report.json and report.png."""


@dataclasses.dataclass(frozen=True)
class Options(Source, _Out):
    """Rules of a curation; all options but workers, engine and overwrite decide the bytes."""

    rules: tuple[Family, ...] = FAMILIES
    """Families of rules to apply."""
    web: Web = dataclasses.field(default_factory=Web)
    c4: C4 = dataclasses.field(default_factory=C4)
    gopher: Gopher = dataclasses.field(default_factory=Gopher)
    repetition: Repetition = dataclasses.field(default_factory=Repetition)
    fineweb: FineWeb = dataclasses.field(default_factory=FineWeb)
    duplicates: Duplicates = dataclasses.field(default_factory=Duplicates)
    perplexity: Perplexity = dataclasses.field(default_factory=Perplexity)
    pii: bool = False
    """Replace e-mail, public IP, phone, card, IBAN and social security numbers by marks."""
    decontaminate: tuple[str, ...] = ()
    """Files and folders of evaluation sets; documents that share 13 words in a row with one go."""
    upsample: tuple[str, ...] = ()
    """PATTERN=TIMES repeats documents of input files that match: speeches/*=3, *.md=1.5."""
    workers: int = 0
    """Processes; 0 takes one per core. The result does not depend on it."""
    engine: Literal["local", "datatrove-local", "datatrove-slurm", "datatrove-ray"] = "local"
    """Engine of the tasks; those of datatrove need the extra curate-ray and a shared --out."""
    overwrite: bool = False
    """Replace what another curation left in --out."""

    def check(self) -> None:
        """Refuses what cannot work."""
        if storage.is_remote(self.out) or str(self.out).startswith("gs:"):  # Path drops a slash
            raise ConfigError(f"out = {str(self.out)!r} is not a local folder", "curate locally")
        self.web.check()
        self.duplicates.check()
        self.perplexity.check()
        self.upsampling()
        if self.workers < 0:
            raise ConfigError(f"workers = {self.workers} is negative", "0 takes one per core")

    def upsampling(self) -> list[tuple[str, float]]:
        """Patterns of file names and how often their documents are repeated."""
        patterns = []
        for item in self.upsample:
            pattern, _, times = item.rpartition("=")
            try:
                value = float(times)
            except ValueError:
                value = -1.0
            if not pattern or not 0 <= value <= 100:
                raise ConfigError(
                    f"upsample = {item!r} is not PATTERN=TIMES", "write e.g. speeches/*=3"
                )
            patterns.append((pattern, value))
        return patterns

    def parameters(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Options that decide the result, for the report and against mixing two curations."""
        skipped = {"out", "workers", "engine", "overwrite", "keep_text", "input", "max_bad"}
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in skipped}
        named = [*self.decontaminate, self.web.blocked_domains]
        named.append((self.perplexity.scorer or "").partition(":")[2])
        if contents := {place: _content(Path(place)) for place in map(str, filter(None, named))}:
            fields["contents"] = contents
        return fields | {"identity": identity}


def _content(place: Path) -> str:
    """Hash of the files at a place, of a run those that seal its checkpoints; "" for none."""
    place = place.expanduser()
    seals = sorted(place.glob(f"checkpoints/*/{CHECKSUMS}"))
    files = seals or sorted(path for path in (place, *place.rglob("*")) if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(place)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if files else ""


def times(name: str, upsampling: list[tuple[str, float]]) -> tuple[str | None, float]:
    """The first pattern that matches a file, and how often its documents are written."""
    for pattern, value in upsampling:
        if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"*/{pattern}"):
            return pattern, value
    return None, 1.0

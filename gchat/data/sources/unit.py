"""A corpus, as every source hands it over: a list of units, each a stream of documents."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gaia.errors import DataError
from gchat.data.sources.content import Listing

META_FIELDS = ("id", "url", "title", "language", "source", "date", "file")
"""Facts kept of a document besides its text, where the source has them; "file" is its file."""


class Row(NamedTuple):
    """A document and what its source says about it (some of META_FIELDS)."""

    text: str
    meta: dict[str, str]


@dataclasses.dataclass
class Tally:
    """Counts of the oddities that reading meets; a source adds to it."""

    invalid_utf8: int = 0
    """Byte sequences that were not UTF-8 and became U+FFFD."""
    invalid_file: str = ""
    """The first file that holds some."""
    nulls: int = 0
    """Documents without a text: null in JSON lines or parquet."""
    bad: int = 0
    """Documents that cannot be read."""
    bad_first: str = ""
    """File, line and reason of the first of them."""
    max_bad: int = 0
    """Number of documents that may be bad before reading stops."""

    def counts(self) -> dict[str, Any]:
        """Figures for the record of a unit."""
        names = ("invalid_utf8", "invalid_file", "nulls", "bad", "bad_first")
        return {name: getattr(self, name) for name in names}

    def reject(self, where: str, error: DataError) -> None:
        """Counts a document that cannot be read; raises `error` where there are too many."""
        self.bad += 1
        self.bad_first = self.bad_first or where
        if self.bad > self.max_bad:
            raise error


@dataclasses.dataclass(frozen=True)
class Unit:
    """Part of a corpus that an interruption repeats: a group of files, or one parquet shard.

    Units are sent to worker processes, so what they hold must be picklable.
    """

    name: str
    documents: Callable[[Tally], Iterator[str]]
    """Reads the documents in a fixed order."""
    text_bytes: int | None = None
    """About how much text it holds, for the progress bar."""
    split: str | None = None
    """"train" or "val" where the source has its own validation text; None splits by hash."""
    rows: Callable[[Tally], Iterator[Row]] | None = None
    """Reads the same documents with their url, title, …, where the source knows them."""
    fetch: Callable[[], object] | None = None
    """Makes it available on this machine; called in the main process before the unit is read."""

    def read(self, tally: Tally) -> Iterator[Row]:
        """The documents with what is known about them."""
        if self.rows is not None:
            return self.rows(tally)
        return (Row(text, {}) for text in self.documents(tally))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A source that was found and listed, but not yet read."""

    units: Sequence[Unit]
    sources: tuple[str, ...]
    """Files or packages it is made of, for the manifest."""
    identity: dict[str, Any]
    """Facts that decide its text, besides the content of its files."""
    max_bad: int = 0
    """Number of documents that may be bad, in all units together."""
    paths: tuple[Path, ...] = ()
    """The files, where it is made of some."""
    listing: Listing | None = None
    """The files, where their content decides the text."""
    left_out: str = ""
    """Files of the input that are not read, by reason, for people."""

    def identified(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All facts that decide its text: equal ones give the same documents.

        Args:
            before: facts of earlier work, which goes on under the rule that it began with where
                that one still says the same of the files.
        """
        if self.listing is None:
            return dict(self.identity)
        former = self.listing.former_identity if before else None
        if before and former is not None and before.get("files") == former:
            return {"files": former, **self.identity}
        return {"files": self.listing.identity, **self.identity}

    def tally(self) -> Tally:
        """Counts for reading a unit."""
        return Tally(max_bad=self.max_bad)

    def check_bad(self, counts: Sequence[dict[str, Any]]) -> None:
        """Raises DataError where the units had more bad documents together than are allowed.

        Args:
            counts: `counts()` of the tally of each unit.
        """
        bad = sum(unit["bad"] for unit in counts)
        if bad > self.max_bad:
            first = next(unit["bad_first"] for unit in counts if unit["bad"])
            raise DataError(
                f"{bad:,} documents cannot be read, the first is {first}",
                "mend them, or allow so many with --max-bad",
            )


def oddities(counts: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on what reading met; none where all was well."""
    invalid, nulls, bad = (
        sum(u[name] for u in counts) for name in ("invalid_utf8", "nulls", "bad")
    )
    said = []
    if invalid:
        first = next(unit["invalid_file"] for unit in counts if unit["invalid_file"])
        said.append(f"{invalid:,} invalid UTF-8 sequences became U+FFFD, the first in {first}")
    if nulls:
        said.append(f"{nulls:,} documents without a text (null) were left out")
    if bad:
        first = next(unit["bad_first"] for unit in counts if unit["bad"])
        said.append(f"{bad:,} documents that cannot be read were left out, the first is {first}")
    return said

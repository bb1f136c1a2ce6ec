"""A corpus, as every source hands it over: a list of units, each a stream of documents."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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
    """Facts that decide its text: the same identity gives the same documents."""
    left_out: str = ""
    """Files of the input that are not read, by reason, for people."""

"""What every source hands over: a corpus as a list of units, each a stream of documents."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass
class Tally:
    """What reading found besides documents; a source adds to it."""

    invalid_utf8: int = 0
    """Byte sequences that were not UTF-8 and became U+FFFD."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What an interruption makes us do again: a group of files, or one parquet shard."""

    name: str
    documents: Callable[[Tally], Iterator[str]]
    """Reads the documents in a fixed order."""
    text_bytes: int | None = None
    """About how much text it holds, for the progress bar."""
    split: str | None = None
    """"train" or "val" where the source has its own validation text; None splits by hash."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A source that was found and listed, but not yet read."""

    units: Sequence[Unit]
    sources: tuple[str, ...]
    """What it is made of, for the manifest."""
    identity: dict[str, Any]
    """What decides its text: the same identity gives the same documents."""

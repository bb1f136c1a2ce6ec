"""Text that a run tokenizes itself, as it is needed: `gchat train --data.text PATH`.

The text is cut into units of up to 4 MiB (lines of a plain file, row groups of parquet, groups of
small files; a compressed file in up to sixteen interleaved parts), which gaia.data.lanes puts in
order. Documents are those of `prepare`, BOS first, shuffled inside their unit; what does not fit a
row at the end of a unit is left out, as at the end of a shard. (A .txt file longer than a unit is
cut at the units, so two of its documents there differ from those of `prepare`.)

Validation is chosen as `prepare` does by default: documents whose hash falls below 0.05. Of them,
the first million tokens are tokenized when the run starts and kept with a sample of the training
text as a small data set, which evaluation reads:

    $GAIA_HOME/text/KEY/    tokens-*, manifest.json, tokenizer.json, text.json; KEY from the text,
                            tokenizer and options, so another text has another folder
"""

import dataclasses
import hashlib
import json
import math
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gaia.data.chunks import Stream
from gaia.data.lanes import MAX_LANES, LaneRows, lanes_of
from gaia.data.manifest import Manifest, load_manifest
from gaia.data.order import permutation
from gaia.data.packing import VERSION as PACKER
from gaia.data.packing import Packing
from gaia.data.shards import write_shards
from gaia.errors import ConfigError, DataError
from gchat import tokenizer as tokenizers
from gchat.data import pool
from gchat.data.prepare import training_text
from gchat.data.progress import progress_bar
from gchat.data.sources import text
from gchat.data.sources.objects import listed
from gchat.data.sources.unit import Corpus, Tally, Unit
from gchat.data.work import position
from gchat.tokenizer import Tokenizer
from gchat.vocab.forced import read as read_forced

VERSION = 1  # of the units and their order; another one makes other batches
VAL_FRACTION = 0.05
VAL_TOKENS = 1 << 20
_SAMPLE_TOKENS = 1 << 16
_UNIT_BYTES = (64 << 10, 4 << 20)
_UNITS = 4 * MAX_LANES  # of a text that is long enough
_WHOLE_BYTES = 64 << 20  # a compressed file must be read from its beginning for each part of it
_MAX_STRIPES = 16
_FACTS = "text.json"


@dataclasses.dataclass(frozen=True)
class _Unit:
    """A stripe of a unit of the corpus: its documents `stripe`, `stripe + of`, …"""

    unit: Unit
    stripe: int
    of: int

    @property
    def name(self) -> str:
        return self.unit.name + (f" ({self.stripe + 1} of {self.of})" if self.of > 1 else "")

    def documents(self) -> Iterator[str]:
        for number, document in enumerate(self.unit.documents(Tally())):
            if number % self.of == self.stripe:
                yield document


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A text that can be trained on.

    Attributes:
        place: as the user gave it.
        folder: the small data set of validation text, with the tokenizer.
        val_below: documents whose hash is below this are validation.
        tokens: training tokens, estimated from the text that was read so far.
    """

    place: str
    folder: Path
    units: Sequence[_Unit]
    tokenizer: Tokenizer
    manifest: Manifest
    val_below: float
    tokens: int
    facts: dict[str, Any]

    def fingerprint(self) -> str:
        """Words and a hash that tell the order and content of training rows."""
        files = self.facts["files"]
        return (
            f"text of {_count(files)} with {sum(f[1] for f in files):,} bytes "
            f"({self.folder.name}) of tokenizer {self.tokenizer.sha256[:12]}"
        )

    def describe(self) -> str:
        """One sentence on the data for a report."""
        facts = self.facts["files"]
        return (
            f"about {self.tokens / 1e6:,.2f}M training tokens, tokenized as they were needed from "
            f"{_count(facts)} with {sum(f[1] for f in facts) / 1e6:,.1f} MB of {self.place}; "
            f"validation {self.manifest.tokens('val'):,} tokens (documents whose hash falls below "
            f"{self.val_below:.4g}); {self.tokenizer.kind} tokenizer with "
            f"{self.tokenizer.vocab_size:,} ids ({self.tokenizer.sha256[:12]})"
        )

    def read(self, number: int) -> Stream:
        """Tokens of the training documents of one unit, shuffled."""
        made = []
        for document in self.units[number].documents():
            if position(document) >= self.val_below:
                ids = self.tokenizer.encode_array(document)
                made.append(np.concatenate([[self.tokenizer.bos_id], ids]))
        dtype = self.tokenizer.info.dtype
        if not made:
            return Stream(np.empty(0, dtype), np.empty(0, np.int64))
        made = [made[i] for i in permutation(len(made), number, 0x646F6373).tolist()]
        lengths = np.array([len(ids) for ids in made])
        return Stream(np.concatenate(made).astype(dtype), np.cumsum(lengths) - lengths)

    def rows(self, seq_len: int, packing: Packing, batch_size: int, rows_here: int) -> LaneRows:
        """Its rows, for a process that takes `rows_here` of each batch."""
        lanes = lanes_of(batch_size, len(self.units))
        mine = max(1, math.ceil(rows_here * lanes / batch_size))
        return LaneRows(
            self.place,
            [unit.name for unit in self.units],
            self.read,
            seq_len=seq_len,
            bos_id=self.tokenizer.bos_id,
            packing=packing,
            held=2 * mine + 2,
            threads=max(1, min(8, pool.cores() - 1)),
            counts=self.folder / f"rows-{seq_len}-{packing}-{PACKER}.txt",
        )


def open_text(
    place: str,
    *,
    column: str,
    tokenizer: str,
    vocab_size: int,
    forced: Sequence[str] = (),
    begun: str | None = None,
) -> TextSet:
    """Lists a text, and tokenizes its validation documents unless that was done before.

    Args:
        place: file, folder or glob, or a gs:// object or prefix.
        column: field of .jsonl and .parquet files.
        tokenizer: gpt2, bpe, or the path of a stored one.
        vocab_size: of a bpe.
        forced: single tokens of a bpe, as `gchat.vocab.forced.read` takes them.
        begun: the fingerprint that the run began with.

    Raises:
        DataError: no text there, or too little for a training and a validation document.
        ConfigError: no such tokenizer, or a compressed file that is too long.
    """
    stored = _stored(tokenizer)
    named = stored.sha256 if stored else [tokenizer, vocab_size if tokenizer == "bpe" else None]
    if tokenizer == "bpe" and forced:
        named = [named, *forced]

    def key_of(marks: list[list[Any]]) -> str:
        identity = [VERSION, marks, column, named, _UNIT_BYTES, VAL_FRACTION, VAL_TOKENS]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]

    if storage.is_remote(place):
        corpus, marks = listed(place, column, _unit_bytes)
    else:
        corpus, marks = _local(place, column, lambda marks: key_of(marks) == _key_in(begun))
    folder = storage.home() / "text" / key_of(marks)
    units = [stripe for unit in corpus.units for stripe in _stripes(unit)]
    if not (folder / _FACTS).exists():
        made = stored or _made(tokenizer, vocab_size, forced, corpus)
        _write_opening(folder, place, corpus, made, {"files": marks})
    facts = json.loads(storage.read_text(folder / _FACTS))
    return TextSet(
        place=place,
        folder=folder,
        units=units,
        tokenizer=Tokenizer.load(folder),
        manifest=load_manifest(folder),
        val_below=facts["val_below"],
        tokens=facts["tokens"],
        facts=facts,
    )


def changed_files(before: str, now: TextSet) -> list[str]:
    """Names of files that are not as they were, as far as this machine remembers.

    Args:
        before: the fingerprint that the run began with.
    """
    old = storage.home() / "text" / (_key_in(before) or "-") / _FACTS
    if not old.exists():
        return []
    was = {name: mark for name, *mark in json.loads(storage.read_text(old))["files"]}
    has = {name: mark for name, *mark in now.facts["files"]}
    return sorted(
        f"{name} is {'gone' if name not in has else 'new' if name not in was else 'another'}"
        for name in was | has
        if not _alike(was.get(name), has.get(name))
    )


def _alike(was: list[Any] | None, has: list[Any] | None) -> bool:
    """Compares size and mark; a time and a hash, of two rules, say nothing together."""
    if was is None or has is None or type(was[1]) is type(has[1]):
        return was == has
    return was[0] == has[0]


def _key_in(fingerprint: str | None) -> str | None:
    match = re.search(r"\(([0-9a-f]{12})\)", fingerprint or "")
    return match[1] if match else None


def _count(files: Sequence[Any]) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _stored(tokenizer: str) -> Tokenizer | None:
    if tokenizer in ("bpe", "gpt2"):
        return None
    if not storage.exists(tokenizer):
        raise ConfigError(
            f"data.tokenizer = {tokenizer!r} is unknown",
            "use bpe, gpt2 or the path of a tokenizer.json",
        )
    return Tokenizer.load(tokenizer)


def _made(tokenizer: str, vocab_size: int, forced: Sequence[str], corpus: Corpus) -> Tokenizer:
    if tokenizer == "gpt2":
        return tokenizers.gpt2()
    years, terms = read_forced(forced)
    texts = training_text(corpus, VAL_FRACTION)
    return tokenizers.train_bpe(texts, vocab_size, years=years, terms=terms)


def _unit_bytes(total: int) -> int:
    least, most = _UNIT_BYTES
    return min(most, max(least, total // _UNITS))


def _local(
    place: str, column: str, is_begun: Callable[[list[list[Any]]], bool]
) -> tuple[Corpus, list[list[Any]]]:
    """The corpus, and name, size and mark of each of its files.

    Args:
        is_begun: tells whether the run began with a text of such marks.
    """
    sizes = [path.stat().st_size for path in text.corpus(place, text_column=column).paths]
    corpus = text.corpus(place, text_column=column, part_bytes=_unit_bytes(sum(sizes)))
    if corpus.left_out:
        print(f"not read of {place}: {corpus.left_out}", file=sys.stderr, flush=True)
    assert corpus.listing is not None
    former = corpus.listing.former_facts
    if former is not None and is_begun(former):
        return corpus, former
    return corpus, corpus.listing.facts


def _stripes(unit: Unit) -> list[_Unit]:
    """A unit, or several parts of one that could not be cut and is too long for memory."""
    size, most = unit.text_bytes or 0, _UNIT_BYTES[1]
    if size <= 2 * most:
        return [_Unit(unit, 0, 1)]
    if size > _WHOLE_BYTES:
        raise ConfigError(
            f"data.text: {unit.name} is one piece of {size / 2**20:,.0f} MiB, which is read again "
            "for each part of it",
            "decompress or split it, write parquet with smaller row groups, or use `gchat data "
            "prepare`",
        )
    of = min(_MAX_STRIPES, 4 * size // most)
    return [_Unit(unit, stripe, of) for stripe in range(of)]


def _write_opening(
    folder: Path, place: str, corpus: Corpus, made: Tokenizer, facts: dict[str, Any]
) -> None:
    """Writes the small data set of a text: validation, a sample of training, the tokenizer."""
    val: list[np.ndarray] = []
    sample: list[np.ndarray] = []
    lowest: tuple[float, str] | None = None
    val_tokens = sampled = sample_chars = chars = read_bytes = trained = 0
    total = sum(unit.text_bytes or 0 for unit in corpus.units)
    with progress_bar("validation text", total) as bar:
        for unit in corpus.units:
            for document in unit.documents(Tally()):
                at = position(document)
                if at < VAL_FRACTION:
                    if val_tokens < VAL_TOKENS:
                        val.append(_encoded(made, document))
                        val_tokens += len(val[-1])
                    continue
                lowest = min(lowest or (at, document), (at, document))
                chars += len(document)
                trained += 1
                if sampled < _SAMPLE_TOKENS:
                    sample.append(_encoded(made, document))
                    sampled += len(sample[-1])
                    sample_chars += len(document)
            read_bytes += unit.text_bytes or 0
            bar.update(unit.text_bytes or 0)
            if val_tokens >= VAL_TOKENS:
                break
    val_below = VAL_FRACTION
    if not val and lowest is not None:
        val_below = math.nextafter(lowest[0], 1)
        val, trained = [_encoded(made, lowest[1])], trained - 1
    if not val or not trained:
        raise DataError(
            f"data.text = {place!r} gave {trained} training and {len(val)} validation documents",
            "use more text",
        )
    tokens = sampled * chars / max(1, sample_chars) * total / max(1, read_bytes)
    making = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_shards(making, sample, val, made.info)
        made.save(making)
        facts = facts | {"val_below": val_below, "tokens": int(tokens), "place": place}
        storage.write_text(making / _FACTS, json.dumps(facts))
        try:
            making.rename(folder)
        except OSError:
            if not (folder / _FACTS).exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _encoded(made: Tokenizer, document: str) -> np.ndarray:
    return np.concatenate([[made.bos_id], made.encode_array(document)])

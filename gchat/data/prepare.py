"""Text to a finished data set: source -> documents -> tokenizer -> shards -> manifest.

The same parameters give the same shards, byte for byte, whatever the number of worker processes
and whether or not the work was interrupted:
- a document belongs to validation when the hash of its text falls below `val_fraction` (so exact
  copies stay on one side), unless the source has validation text of its own; where that leaves
  none, the document with the lowest hash is taken;
- documents are shuffled as a whole, in two passes over `buckets` buckets (`work.py`);
- the work is divided into units (groups of files, parts of large ones); a finished unit is noted
  under `.prepare/` and not done again;
- manifest.json is written last.

On disk it takes the tokens a second time (2 or 4 bytes each) until it is done.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.data.lengths import LENGTHS
from gaia.data.manifest import MANIFEST, VERSION, Manifest
from gaia.data.shards import SHARD_TOKENS, WINDOW
from gaia.errors import ConfigError, DataError
from gaia.work_folder import WorkFolder
from gchat import tokenizer as tokenizers
from gchat.data import buckets, pool, work
from gchat.data.ending import (
    SHARD_NAMES,
    TOKEN_BYTES,
    WHAT,
    finish,
    finished_set,
    names_of,
    previous_parameters,
    shuffled,
)
from gchat.data.progress import progress_bar
from gchat.data.sources.choose import Source
from gchat.data.sources.unit import Corpus, oddities
from gchat.data.work import position
from gchat.tokenizer import Tokenizer
from gchat.vocab.forced import read as read_forced

WORK = "prepare"
_TOKENIZER_CHARS = 200_000_000  # text the BPE is trained on
_DOCUMENT_CAP = 10_000  # characters of one document that the BPE training looks at, as in nanochat
_SUFFIXES = {"K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_MORE = "use more text, a smaller --document-chars, or another --val-fraction"


@dataclasses.dataclass(frozen=True)
class _Out:
    out: Path
    """Folder for shards, manifest.json, tokenizer.json and token_bytes.npy."""


@dataclasses.dataclass(frozen=True)
class Options(Source, _Out):
    """Text to prepare, and how; all but `workers`, `keep_text` and `overwrite` decide the bytes."""

    tokenizer: str = "bpe"
    """Tokenizer: bpe (trained on this text), gpt2, or the path of a tokenizer.json."""
    vocab_size: int = 8192
    """Vocabulary of a trained bpe, special tokens included."""
    forced: tuple[str, ...] = ()
    """Single tokens of a trained bpe: years as 1900-1949, months, and terms by themselves."""
    seed: int = 0
    """Seed of the document shuffle."""
    val_fraction: float = 0.05
    """Share of documents kept for validation, chosen by the hash of their text."""
    shard_tokens: int = SHARD_TOKENS
    """Size of one output shard in tokens, about."""
    shard_size: str | None = None
    """Size of one output shard in bytes before compression: 500M, 128Mi, 1G."""
    buckets: int = 1000
    """Buckets of the two-pass shuffle; its second pass holds one of them in memory."""
    window: int = WINDOW
    """Shards that the loader shuffles together."""
    workers: int = 0
    """Number of processes; 0 takes one per core. The result does not depend on it."""
    overwrite: bool = False
    """Replace another data set in --out."""

    def check(self) -> None:
        """Refuses what cannot work."""
        if storage.is_remote(self.out) or str(self.out).startswith("gs:"):  # Path drops a slash
            raise ConfigError(
                f"out = {str(self.out)!r} is not a local folder",
                "prepare locally, then copy the folder to the bucket",
            )
        if not 0 < self.val_fraction < 1:
            raise ConfigError(
                f"val_fraction = {self.val_fraction} is out of range", "use e.g. 0.05"
            )
        if self.shard_tokens < 1 or self.window < 1:
            raise ConfigError(
                f"shard_tokens = {self.shard_tokens}, window = {self.window}",
                "both must be at least 1",
            )
        if self.shard_size is not None:
            size(self.shard_size)
        if self.forced and self.tokenizer != "bpe":
            raise ConfigError(
                f"forced has no effect with tokenizer = {self.tokenizer!r}",
                "use --tokenizer bpe, or force pieces with `gchat tokenizer train`",
            )
        read_forced(self.forced)
        if not 1 <= self.buckets <= 100_000:
            raise ConfigError(f"buckets = {self.buckets} is out of range", "use e.g. 1000")
        if not 0 <= self.seed < buckets.SEEDS:
            raise ConfigError(
                f"seed = {self.seed} is out of range", f"use 0 to {buckets.SEEDS - 1}"
            )
        if self.workers < 0:
            raise ConfigError(f"workers = {self.workers} is negative", "0 takes one per core")

    def shard_limit(self, itemsize: int) -> int:
        """Tokens of one shard, from --shard-size where it is given."""
        return self.shard_tokens if self.shard_size is None else size(self.shard_size) // itemsize


def size(given: str) -> int:
    """Bytes of `500M`, `64Mi`, `2GB`.

    Raises:
        ConfigError: not a size of at least 1 kB.
    """
    number = given.strip().rstrip("bB")
    digits = number.rstrip("kKmMgGiI")
    try:
        value = int(float(digits) * _SUFFIXES.get(number[len(digits) :].upper() or "", 1))
    except (ValueError, OverflowError):
        value = 0
    unknown = number[len(digits) :].upper() not in (*_SUFFIXES, "")
    if unknown or value < 1000:
        raise ConfigError(f"shard_size = {given!r} is no size", "use e.g. 500M, 128Mi or 1G")
    return value


def prepare(
    *, progress: bool | None = None, corpus: Corpus | None = None, **options: Any
) -> Manifest:
    """Prepares a data set, or returns at once when `out` already holds it.

    Args:
        progress: show bars; None shows them on a terminal.
        corpus: text that is listed already; what the options name when left out.
        options: the fields of `Options`.

    Raises:
        DataError: no usable text, or `out` holds another data set (the differing fields are named).
        ConfigError: a parameter out of range.
    """
    given = Options(**options)
    given.check()
    given = dataclasses.replace(given, out=Path(given.out).expanduser())
    folder = given.out
    # An interrupted preparation goes on with the commit it began with, whatever main is now.
    previous = {} if given.overwrite else previous_parameters(folder, WORK)
    corpus = corpus or given.corpus(previous.get("revision"), exclude=folder)
    chosen = _chosen_tokenizer(given)  # before anything is replaced: it may lie in `out`
    parameters = _parameters(given, corpus, chosen, previous)
    if not given.overwrite and (finished := finished_set(folder, parameters)) is not None:
        return finished
    with WorkFolder(folder, WORK, what=WHAT, markers="unit-*.json") as place:
        if given.overwrite:
            place.clear(names_of(folder))
        elif (finished := finished_set(folder, parameters)) is not None:  # by another process
            return finished
        place.begin(parameters, [MANIFEST, LENGTHS, TOKEN_BYTES], later=SHARD_NAMES)
        encoder = _tokenizer(given, chosen, place, corpus, progress)
        return _work(given, corpus, encoder, place, parameters, progress)


def _work(
    given: Options,
    corpus: Corpus,
    encoder: Tokenizer,
    place: WorkFolder,
    parameters: dict[str, Any],
    progress: bool | None,
) -> Manifest:
    """Both passes and the manifest."""
    workers = given.workers or pool.cores()
    first = work.Encode(
        place.scratch, encoder, given.seed, given.val_fraction, given.buckets, corpus.max_bad
    )
    units = work.encode(first, corpus, workers, progress)
    corpus.check_bad(units)
    for sentence in oddities(units):
        print(sentence, file=sys.stderr, flush=True)
    limit = given.shard_limit(encoder.info.dtype.itemsize)
    shards = shuffled(first, place, units, limit, workers, progress, _MORE)
    return finish(first, corpus, place, units, shards, parameters=parameters, window=given.window)


def _parameters(
    given: Options, corpus: Corpus, chosen: Tokenizer | None, previous: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides the bytes of the data set; kept in the manifest."""
    encoder: dict[str, Any] = {"tokenizer": given.tokenizer}
    if given.tokenizer == "bpe":
        encoder["vocab_size"] = given.vocab_size
        if given.forced:
            encoder["forced"] = list(given.forced)
    elif chosen is not None:
        encoder["tokenizer"] = chosen.sha256  # wherever its file lies
    return {
        "source": given.source,
        **corpus.identified(previous),
        **encoder,
        "seed": given.seed,
        "val_fraction": given.val_fraction,
        "shard_tokens": given.shard_tokens if given.shard_size is None else given.shard_size,
        "buckets": given.buckets,
        "window": given.window,
        "version": VERSION,
    }


def _chosen_tokenizer(given: Options) -> Tokenizer | None:
    """The stored tokenizer that the options name; None where one is trained or published."""
    if given.tokenizer in ("bpe", "gpt2"):
        return None
    if not storage.exists(given.tokenizer):
        raise ConfigError(
            f"tokenizer = {given.tokenizer!r} is unknown",
            "use bpe, gpt2 or the path of a tokenizer.json",
        )
    return Tokenizer.load(given.tokenizer)


def _tokenizer(
    given: Options,
    chosen: Tokenizer | None,
    place: WorkFolder,
    corpus: Corpus,
    progress: bool | None,
) -> Tokenizer:
    """The tokenizer of the data set: taken up, loaded or trained, and stored in its folder.

    Raises:
        DataError: somebody's tokenizer lies there, and another one is asked for.
    """
    path = place.folder / tokenizers.FILE
    if place.has(tokenizers.FILE) and path.exists():  # of the interrupted preparation
        return Tokenizer.load(path)
    if path.exists():
        stored = Tokenizer.load(path)
        if chosen is None or stored.sha256 != chosen.sha256:
            raise DataError(
                f"out = {str(place.folder)!r} holds another tokenizer than --tokenizer "
                f"{given.tokenizer} ({stored.kind}, {stored.vocab_size:,} ids)",
                f"use it with --tokenizer {place.folder}, or choose another --out",
            )
        return stored
    place.claim(tokenizers.FILE)
    if given.tokenizer == "gpt2":
        made = tokenizers.gpt2()
    elif chosen is not None:
        made = chosen
    else:
        texts = training_text(corpus, given.val_fraction, progress)
        years, terms = read_forced(given.forced)
        made = tokenizers.train_bpe(texts, given.vocab_size, years=years, terms=terms)
    made.save(path)
    return made


def training_text(
    corpus: Corpus, val_fraction: float, progress: bool | None = None
) -> Iterator[str]:
    """Training documents from the beginning, for a tokenizer; validation text is left out."""
    left = _TOKENIZER_CHARS
    with progress_bar("tokenizer", None, progress) as bar:
        for unit in corpus.units:
            if unit.split == "val":
                continue
            for document in unit.documents(corpus.tally()):
                if unit.split is None and position(document) < val_fraction:
                    continue
                bar.update(len(document))
                yield document[:_DOCUMENT_CAP]
                left -= min(len(document), _DOCUMENT_CAP)
                if left <= 0:
                    return

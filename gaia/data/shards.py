"""The shard format: token streams in ArrayRecord files, described by one manifest.

A data set is a folder (or gs:// prefix):

    tokens-00000.arrayrecord …   the training stream, cut into shards at document boundaries
    test-tokens.arrayrecord      the validation stream
    manifest.json                written last: tokenizer, sources, every shard's counts and checksum

One record is a chunk of at most `chunk_tokens` consecutive tokens of its shard (gaia.data.chunks).
Chunks follow one another without a gap, so a shard is one contiguous stream and rows of any length
can be sliced from it without tokenizing again. Records use `group_size:1,zstd`: 0.73 of the raw
bytes, and still above 100 Mtok/s per core when read.

Plain text is version 1 of the format. Data with loss masks (chats, texts of which only a part is
learned) is version 2: each chunk has a bit more for each token.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeGuard

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from gaia import storage
from gaia.data import chunks
from gaia.data.chunks import Stream
from gaia.data.manifest import (
    CHUNK_TOKENS,
    SPLITS,
    WINDOW,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    load_manifest,
    write_manifest,
)
from gaia.data.packing import Example
from gaia.errors import ConfigError, DataError

TRAIN_NAME = "tokens-{index:05d}.arrayrecord"
VAL_NAME = "test-tokens.arrayrecord"
SHARD_TOKENS = 1 << 26  # 128 MiB of uint16: large enough to stream, four of them fit in memory
WRITE_OPTIONS = "group_size:1,zstd"


class ShardWriter:
    """Appends documents to shards; a shard appears under its name only when it is complete.

    Args:
        folder: local folder (upload afterwards: ArrayRecord cannot write to gs://).
        dtype: of the stored ids.
        name: file name, `{index}` is replaced by the shard's number.
        first_index: number of the first shard, for a writer that continues.
        shard_tokens: a shard is closed by the first document that brings it to this many tokens;
            None keeps everything in one.
        masked: keep a loss mask of every token.

    Attributes:
        shards: the finished ones.
        learned: tokens in them and in the open one whose mask holds; all where `masked` is false.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: np.dtype,
        name: str = TRAIN_NAME,
        first_index: int = 0,
        shard_tokens: int | None = SHARD_TOKENS,
        chunk_tokens: int = CHUNK_TOKENS,
        masked: bool = False,
    ) -> None:
        self.shards: list[ShardInfo] = []
        self.learned = 0
        self._folder = Path(folder)
        self._name = name
        self._index = first_index
        self._limit = shard_tokens
        self._chunk = np.empty(chunk_tokens, np.dtype(dtype).newbyteorder("<"))
        self._mask = np.empty(chunk_tokens, bool) if masked else None
        self._fill = 0
        self._starts: list[int] = []
        self._records = self._tokens = 0
        self._stack = contextlib.ExitStack()
        self._writer: Any = None
        self._tmp = Path()

    def add(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Appends one document, whole: a shard is never closed inside one.

        Args:
            tokens: its first is the BOS.
            mask: bool, True where a token is learned; None for all.

        Raises:
            ConfigError: a mask of another length, or for a writer that keeps none.
        """
        if mask is not None and (self._mask is None or len(mask) != len(tokens)):
            raise ConfigError(
                f"a document of {len(tokens)} tokens has a loss mask of {len(mask)}"
                + " for shards without masks" * (self._mask is None),
                "give each token its place in the mask, and masked=True to the writer",
            )
        if self._writer is None:
            self._open()
        self.learned += len(tokens) if mask is None else int(np.count_nonzero(mask))
        self._starts.append(self._fill)
        done = 0
        while done < len(tokens):
            take = min(len(tokens) - done, len(self._chunk) - self._fill)
            here = slice(self._fill, self._fill + take)
            self._chunk[here] = tokens[done : done + take]
            if self._mask is not None:
                self._mask[here] = True if mask is None else mask[done : done + take]
            self._fill += take
            done += take
            if self._fill == len(self._chunk):
                self._flush()
        if self._limit is not None and self._tokens + self._fill >= self._limit:
            self._close()

    def close(self) -> tuple[ShardInfo, ...]:
        """Finishes the open shard and returns what was written."""
        if self._writer is not None:
            self._close()
        return tuple(self.shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
            return
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()
        self._stack.__exit__(kind, error, trace)  # removes the temporary file: no shard appears

    def _open(self) -> None:
        name = self._name.format(index=self._index)
        self._stack = contextlib.ExitStack()
        self._tmp = self._stack.enter_context(storage.atomic_path(self._folder / name))
        self._writer = array_record_module.ArrayRecordWriter(str(self._tmp), WRITE_OPTIONS)
        self._records = self._tokens = 0

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """ArrayRecord reports a full disk as a RuntimeError of several clauses."""
        try:
            yield
        except RuntimeError as error:
            raise storage.StorageError(
                f"cannot write shard {self._name.format(index=self._index)} in {self._folder} "
                f"({str(error).split(';')[0]})",
                "make room on the disk and run it again: finished shards are kept",
            ) from error

    def _flush(self) -> None:
        if not self._fill:
            return
        tokens, starts = self._chunk[: self._fill], np.array(self._starts, np.int64)
        mask = None if self._mask is None else self._mask[: self._fill]
        with self._explained():
            self._writer.write(chunks.to_bytes(tokens, starts, mask))
        self._records += 1
        self._tokens += self._fill
        self._fill = 0
        self._starts = []

    def _close(self) -> None:
        self._flush()
        with self._explained():
            writer, self._writer = self._writer, None
            writer.close()
        name = self._name.format(index=self._index)
        crc = storage.crc32c_file(self._tmp)
        self.shards.append(
            ShardInfo(name, self._records, self._tokens, self._tmp.stat().st_size, crc)
        )
        self._stack.close()  # fsync and rename
        self._index += 1


Document = Sequence[int] | np.ndarray | Example | tuple[np.ndarray, np.ndarray]
"""Tokens, BOS first; or tokens with the loss mask of each."""


def write_shards(
    out: str | Path,
    documents: Iterable[Document],
    val_documents: Iterable[Document],
    tokenizer: TokenizerInfo,
    **writer: Any,
) -> Manifest:
    """Writes a whole data set from tokenized documents, for small sets and tests.

    The first document says of which kind the data is: with loss masks where it has one. Documents
    without a mask among such are learned whole.

    Args:
        writer: `shard_tokens` and `chunk_tokens` of ShardWriter, and `window`.

    Raises:
        ConfigError: a mask of another length than its tokens, or one in data that began without.
    """
    window = writer.pop("window", WINDOW)
    masked, documents, val_documents = _is_masked(documents, val_documents)
    shards: dict[str, tuple[ShardInfo, ...]] = {}
    counts, learned = {}, {}
    for split, items in (("train", documents), ("val", val_documents)):
        options: dict[str, Any] = {"masked": masked}
        options |= {} if split == "train" else {"name": VAL_NAME, "shard_tokens": None}
        with ShardWriter(out, dtype=tokenizer.dtype, **(writer | options)) as made:
            counts[split] = 0
            for item in items:
                tokens, mask = item if _has_mask(item) else (item, None)
                made.add(np.asarray(tokens), None if mask is None else np.asarray(mask, bool))
                counts[split] += 1
        shards[split], learned[split] = tuple(made.shards), made.learned
    manifest = Manifest(
        tokenizer=tokenizer,
        train=shards["train"],
        val=shards["val"],
        documents=counts,
        text_bytes=dict.fromkeys(SPLITS, 0),
        dtype=tokenizer.dtype.name,
        chunk_tokens=writer.get("chunk_tokens", CHUNK_TOKENS),
        window=window,
        learned=learned if masked else None,
    )
    write_manifest(out, manifest)
    return manifest


def _has_mask(item: Document) -> TypeGuard[tuple[np.ndarray, np.ndarray]]:
    return isinstance(item, tuple) and len(item) == 2 and np.ndim(item[0]) == 1


def _is_masked(
    *splits: Iterable[Document],
) -> tuple[bool, Iterable[Document], Iterable[Document]]:
    """True where the first document of a split has a mask; and the documents, none taken."""
    train, val = (iter(items) for items in splits)
    first = [list(itertools.islice(items, 1)) for items in (train, val)]
    masked = any(_has_mask(item) for items in first for item in items)
    return masked, itertools.chain(first[0], train), itertools.chain(first[1], val)


def read_shard(data_dir: str | Path, shard: ShardInfo, manifest: Manifest) -> Stream:
    """Reads one shard whole, after its checksum and counts were compared with the manifest.

    Raises:
        DataError: names the shard; nothing of it is returned.
    """
    where = storage.join(data_dir, shard.name)
    with storage.local_file(where) as path:
        return read_shard_file(path, where, shard, manifest)


def read_shard_file(path: Path, where: str, shard: ShardInfo, manifest: Manifest) -> Stream:
    """`read_shard` for a local copy of the shard at `where`, which errors name."""
    remedy = "prepare it again or copy it again from where it came"
    tokenizer = manifest.tokenizer
    if (size := path.stat().st_size) != shard.bytes:
        raise DataError(f"shard {where} has {size} bytes, manifest says {shard.bytes}", remedy)
    if (crc := storage.crc32c_file(path)) != shard.crc32c:
        raise DataError(f"shard {where}: crc32c {crc}, manifest says {shard.crc32c}", remedy)
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    try:
        # A reader on a bad file reports 0 records without raising, so the count is compared.
        if (records := reader.num_records()) != shard.records:
            raise DataError(
                f"shard {where} has {records} records, manifest says {shard.records}", remedy
            )
        masked = manifest.learned is not None
        try:
            stream = chunks.join(
                _records(reader, records), shard.tokens, tokenizer.dtype, masked=masked
            )
        except ValueError as error:
            raise DataError(f"shard {where}: {error}", remedy) from error
    finally:
        reader.close()
    if (largest := int(stream.tokens_N.max())) >= tokenizer.vocab_size:
        raise DataError(
            f"shard {where}: id {largest} is outside the vocabulary of {tokenizer.vocab_size}",
            "the manifest belongs to another tokenizer; prepare the data again",
        )
    return stream


def _records(reader: Any, records: int, at_once: int = 64) -> Iterator[bytes]:
    for first in range(0, records, at_once):
        yield from reader.read(first, min(first + at_once, records))


def verify(data_dir: str | Path, *, threads: int = 4) -> Manifest:
    """Re-reads every shard: size, crc32c; counts of records, tokens, documents
    and learned tokens.

    Args:
        threads: shards read at a time; each is in memory while it is counted.

    Raises:
        DataError: one line that names every bad shard.
    """
    manifest = load_manifest(data_dir)

    def counted(shard: ShardInfo) -> tuple[int, int] | DataError:
        """Documents and learned tokens."""
        try:
            stream = read_shard(data_dir, shard, manifest)
        except DataError as error:
            return error
        learned = shard.tokens if stream.mask_N is None else np.count_nonzero(stream.mask_N)
        return len(stream.starts), int(learned)

    problems = []
    with ThreadPoolExecutor(threads, thread_name_prefix="gaia-verify") as pool:
        for split in SPLITS:
            results = list(pool.map(counted, manifest.shards(split)))
            if errors := [result.problem for result in results if isinstance(result, DataError)]:
                problems += errors
                continue
            sums = [sum(r[i] for r in results if isinstance(r, tuple)) for i in range(2)]
            said = [("documents", manifest.documents), ("learned tokens", manifest.learned)]
            problems += [
                f"{split} has {total} {unit}, manifest says {by_split[split]}"
                for total, (unit, by_split) in zip(sums, said, strict=True)
                if by_split is not None and total != by_split[split]
            ]
    if problems:
        raise DataError(" | ".join(problems), "prepare or copy these shards again")
    return manifest

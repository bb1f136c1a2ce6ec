"""The shard format: token streams in ArrayRecord files, described by one manifest.

A data set is a folder (or gs:// prefix):

    tokens-00000.arrayrecord …   the training stream, cut into shards at document boundaries
    test-tokens.arrayrecord      the validation stream
    manifest.json                written last: tokenizer, sources, every shard's counts and checksum

One record is a chunk of at most `chunk_tokens` consecutive tokens of its shard:

    "GTOK" | uint32 tokens | uint32 starts | uint32 bytes per token
    starts x uint32 (offsets in this chunk where a document begins) | tokens x uint16 or uint32

all little-endian. Chunks follow one another without a gap, so a shard is one contiguous stream and
rows of any length can be sliced from it without tokenizing again. Records use
`group_size:1,zstd`: 0.73 of the raw bytes, and still above 100 Mtok/s per core when read.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from gaia import storage
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
from gaia.errors import DataError

TRAIN_NAME = "tokens-{index:05d}.arrayrecord"
VAL_NAME = "test-tokens.arrayrecord"
SHARD_TOKENS = 1 << 26  # 128 MiB of uint16: large enough to stream, four of them fit in memory
WRITE_OPTIONS = "group_size:1,zstd"

_HEADER = struct.Struct("<4sIII")
_MAGIC = b"GTOK"


class ShardWriter:
    """Appends documents to shards; a shard appears under its name only when it is complete.

    Args:
        folder: local folder (upload afterwards: ArrayRecord cannot write to gs://).
        dtype: of the stored ids.
        name: file name, `{index}` is replaced by the shard's number.
        first_index: number of the first shard, for a writer that continues.
        shard_tokens: a shard is closed by the first document that brings it to this many tokens;
            None keeps everything in one.
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
    ) -> None:
        self.shards: list[ShardInfo] = []
        self._folder = Path(folder)
        self._name = name
        self._index = first_index
        self._limit = shard_tokens
        self._chunk = np.empty(chunk_tokens, np.dtype(dtype).newbyteorder("<"))
        self._fill = 0
        self._starts: list[int] = []
        self._records = self._tokens = 0
        self._stack = contextlib.ExitStack()
        self._writer: Any = None
        self._tmp = Path()

    def add(self, tokens: np.ndarray) -> None:
        """Appends one document; its first token is the BOS."""
        if self._writer is None:
            self._open()
        self._starts.append(self._fill)
        done = 0
        while done < len(tokens):
            take = min(len(tokens) - done, len(self._chunk) - self._fill)
            self._chunk[self._fill : self._fill + take] = tokens[done : done + take]
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
        starts = np.asarray(self._starts, "<u4")
        header = _HEADER.pack(_MAGIC, self._fill, len(starts), self._chunk.itemsize)
        with self._explained():
            self._writer.write(header + starts.tobytes() + self._chunk[: self._fill].tobytes())
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


def write_shards(
    out: str | Path,
    documents: Iterable[Sequence[int] | np.ndarray],
    val_documents: Iterable[Sequence[int] | np.ndarray],
    tokenizer: TokenizerInfo,
    **writer: Any,
) -> Manifest:
    """Writes a whole data set from tokenized documents (BOS first), for small sets and tests.

    Args:
        writer: `shard_tokens` and `chunk_tokens` of ShardWriter, and `window`.
    """
    window = writer.pop("window", WINDOW)
    found: dict[str, tuple[ShardInfo, ...]] = {}
    counts = {}
    for split, items in (("train", documents), ("val", val_documents)):
        options = {} if split == "train" else {"name": VAL_NAME, "shard_tokens": None}
        with ShardWriter(out, dtype=tokenizer.dtype, **(writer | options)) as shards:
            counts[split] = 0
            for item in items:
                shards.add(np.asarray(item))
                counts[split] += 1
        found[split] = tuple(shards.shards)
    manifest = Manifest(
        tokenizer=tokenizer,
        train=found["train"],
        val=found["val"],
        documents=counts,
        text_bytes=dict.fromkeys(SPLITS, 0),
        dtype=tokenizer.dtype.name,
        chunk_tokens=writer.get("chunk_tokens", CHUNK_TOKENS),
        window=window,
    )
    write_manifest(out, manifest)
    return manifest


def read_shard(
    data_dir: str | Path, shard: ShardInfo, tokenizer: TokenizerInfo
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one shard whole, after its checksum and counts were compared with the manifest.

    Returns:
        tokens [shard.tokens] uint16 or uint32, and starts [documents] int64: where each begins.

    Raises:
        DataError: names the shard; nothing of it is returned.
    """
    where = storage.join(data_dir, shard.name)
    with storage.local_file(where) as path:
        return read_shard_file(path, where, shard, tokenizer)


def read_shard_file(
    path: Path, where: str, shard: ShardInfo, tokenizer: TokenizerInfo
) -> tuple[np.ndarray, np.ndarray]:
    """`read_shard` for a local copy of the shard at `where`, which errors name."""
    remedy = "prepare it again or copy it again from where it came"
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
        try:
            tokens, starts = _join(_records(reader, records), shard.tokens, tokenizer.dtype)
        except ValueError as error:
            raise DataError(f"shard {where}: {error}", remedy) from error
    finally:
        reader.close()
    if (largest := int(tokens.max())) >= tokenizer.vocab_size:
        raise DataError(
            f"shard {where}: id {largest} is outside the vocabulary of {tokenizer.vocab_size}",
            "the manifest belongs to another tokenizer; prepare the data again",
        )
    return tokens, starts


def _records(reader: Any, records: int, at_once: int = 64) -> Iterator[bytes]:
    for first in range(0, records, at_once):
        yield from reader.read(first, min(first + at_once, records))


def _join(records: Iterable[bytes], count: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Chunks to one stream; ValueError where they contradict each other or the count."""
    tokens = np.empty(count, dtype)
    starts = []
    done = 0
    for record in records:
        magic, n_tokens, n_starts, itemsize = _HEADER.unpack_from(record)
        body = _HEADER.size + 4 * n_starts
        if magic != _MAGIC or itemsize != dtype.itemsize:
            raise ValueError(f"a record is not a chunk of {dtype.name} tokens")
        if len(record) != body + n_tokens * itemsize or done + n_tokens > count:
            raise ValueError(f"its records do not hold the {count} tokens of the manifest")
        starts.append(np.frombuffer(record, "<u4", n_starts, _HEADER.size).astype(np.int64) + done)
        tokens[done : done + n_tokens] = np.frombuffer(
            record, dtype.newbyteorder("<"), n_tokens, body
        )
        done += n_tokens
    if done != count:
        raise ValueError(f"it holds {done} tokens, manifest says {count}")
    return tokens, np.concatenate(starts)


def verify(data_dir: str | Path, *, threads: int = 4) -> Manifest:
    """Re-reads every shard: size, crc32c, record, token and document counts.

    Args:
        threads: shards read at a time; each is in memory while it is counted.

    Raises:
        DataError: one line that names every bad shard.
    """
    manifest = load_manifest(data_dir)

    def documents(shard: ShardInfo) -> int | DataError:
        try:
            return len(read_shard(data_dir, shard, manifest.tokenizer)[1])
        except DataError as error:
            return error

    problems = []
    with ThreadPoolExecutor(threads, thread_name_prefix="gaia-verify") as pool:
        for split in SPLITS:
            found = list(pool.map(documents, manifest.shards(split)))
            errors = [f.problem for f in found if isinstance(f, DataError)]
            problems += errors
            total = sum(f for f in found if isinstance(f, int))
            if not errors and total != manifest.documents[split]:
                problems.append(
                    f"{split} has {total} documents, manifest says {manifest.documents[split]}"
                )
    if problems:
        raise DataError(" | ".join(problems), "prepare or copy these shards again")
    return manifest

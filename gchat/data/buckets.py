"""Runs: what the first pass of the shuffle leaves, and what the second one reads.

A run holds tokenized documents sorted by bucket and, inside a bucket, by a key. Both follow from
(seed, unit, number of the document in its unit), so the shuffle depends neither on how many
processes worked nor on how much each held in memory. Sorting inside one file, instead of appending
to 1,000 files, keeps the number of files that of the units.

    "GRUN" | uint32 version, buckets, bytes per token | uint64 documents, tokens
    uint64 [2 * buckets + 1]   first document of each segment
    uint64 [2 * buckets + 1]   first token of each segment
    uint64 [documents]         keys
    uint32 [documents]         lengths
    tokens

Segment b holds the training documents of bucket b, segment `buckets + b` the validation ones.
"""

import dataclasses
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gaia import storage
from gaia.errors import DataError

_HEADER = struct.Struct("<4sIIIQQ")
_MAGIC = b"GRUN"
_VERSION = 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SEEDS = 2**63
"""Number of seeds that give orders of their own: 0 to this, less one."""


def keys(seed: int, unit: int, count: int, first: int = 0) -> np.ndarray:
    """uint64 [count]: a random number of each document of a unit (SplitMix64).

    Args:
        first: number of the first of these documents in its unit.
    """
    start = _mix(np.array([(seed << 1) & (2**64 - 1)], np.uint64))[0] ^ np.uint64(unit << 36)
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return _mix(_mix(start + (numbers + np.uint64(1)) * _GOLDEN))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bucket_of(keys_N: np.ndarray, buckets: int) -> np.ndarray:
    """int64 [N]: the bucket of each key, from its upper half; the order uses all of it."""
    return (((keys_N >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenized documents one after another."""

    tokens: np.ndarray
    """[T], uint16 or uint32."""
    lengths: np.ndarray
    """[N] uint32."""
    keys: np.ndarray
    """[N] uint64."""

    def in_order(self) -> Iterator[np.ndarray]:
        """The tokens of each document, by key."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        starts = ends - self.lengths
        for i in np.argsort(self.keys, kind="stable").tolist():
            yield self.tokens[starts[i] : ends[i]]


def write_run(path: Path, documents: Documents, is_val: np.ndarray, buckets: int) -> None:
    """Writes one run atomically.

    Args:
        is_val: bool [N], the documents of the validation split.
    """
    segment = bucket_of(documents.keys, buckets) + buckets * is_val
    order = np.lexsort((documents.keys, segment))
    ends = np.cumsum(documents.lengths, dtype=np.int64)
    starts = ends - documents.lengths
    lengths = documents.lengths[order]
    edges = np.arange(2 * buckets + 1)
    first_document = np.searchsorted(segment[order], edges).astype("<u8")
    token_ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    first_token = token_ends[first_document.astype(np.int64)].astype("<u8")
    itemsize = documents.tokens.itemsize
    with storage.open_atomic(path) as file:
        file.write(
            _HEADER.pack(_MAGIC, _VERSION, buckets, itemsize, len(lengths), int(token_ends[-1]))
        )
        for array in (first_document, first_token, documents.keys[order], lengths):
            file.write(np.ascontiguousarray(array).tobytes())
        for i in order.tolist():
            file.write(documents.tokens[starts[i] : ends[i]].data)


class Run:
    """Reads segments of one run; only its table of segments is kept in memory."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path = path
        self._dtype = dtype
        with open(path, "rb") as file:
            magic, version, buckets, itemsize, self.documents, self.tokens = _HEADER.unpack(
                file.read(_HEADER.size)
            )
            if (magic, version, itemsize) != (_MAGIC, _VERSION, dtype.itemsize):
                raise DataError(f"{path} is not a run of {dtype.name} tokens", "use --overwrite")
            table = np.frombuffer(file.read(16 * (2 * buckets + 1)), "<u8").astype(np.int64)
        self.first_document, self.first_token = table.reshape(2, -1)
        self._body = _HEADER.size + 16 * (2 * buckets + 1)

    def tokens_by_segment(self) -> np.ndarray:
        """int64 [2 * buckets]."""
        return np.diff(self.first_token)

    def read(self, segment: int) -> Documents:
        """The documents of one segment."""
        at, end = (int(x) for x in self.first_document[segment : segment + 2])
        token, token_end = (int(x) for x in self.first_token[segment : segment + 2])
        lengths = self._body + 8 * self.documents
        tokens = lengths + 4 * self.documents
        size = self._dtype.itemsize
        with open(self._path, "rb", buffering=0) as file:
            return Documents(
                keys=self._array(file.fileno(), "<u8", self._body + 8 * at, end - at),
                lengths=self._array(file.fileno(), "<u4", lengths + 4 * at, end - at),
                tokens=self._array(
                    file.fileno(), self._dtype.str, tokens + size * token, token_end - token
                ),
            )

    def _array(self, file: int, dtype: str, offset: int, count: int) -> np.ndarray:
        wanted = count * np.dtype(dtype).itemsize
        parts = []
        while wanted:  # one call reads 2 GiB at most
            if not (part := os.pread(file, wanted, offset)):
                raise DataError(f"{self._path} is cut off", "prepare again with --overwrite")
            parts.append(part)
            wanted -= len(part)
            offset += len(part)
        return np.frombuffer(b"".join(parts), dtype)


def read_segment(runs: Sequence[Run], segment: int) -> Documents:
    """One bucket of all runs."""
    parts = [run.read(segment) for run in runs]
    return Documents(
        tokens=np.concatenate([part.tokens for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
    )

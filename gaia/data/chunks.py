"""A chunk: up to `chunk_tokens` consecutive tokens of a shard as the bytes of one record.

    "GTOK" | uint32 tokens | uint32 starts | uint32 bytes per token
    starts x uint32 (offsets in this chunk where a document begins) | tokens x uint16 or uint32

    "GTKM" | the same three counts | the same two arrays | loss mask, one bit a token

all little-endian; the first bit of a mask is the lowest of its first byte, and its last byte is
filled up with zeros. A shard has chunks of one kind: the second where some of its tokens are read
but not learned (version 2 of the format), else the first (version 1).
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_HEADER = struct.Struct("<4sIII")
_PLAIN, _MASKED = b"GTOK", b"GTKM"


class Stream(NamedTuple):
    """The tokens of consecutive documents."""

    tokens_N: np.ndarray
    """[N] uint16 or uint32."""
    starts: np.ndarray
    """[documents] int64: where each of them begins."""
    mask_N: np.ndarray | None = None
    """[N] bool: this token is learned; None: all are."""


def to_bytes(tokens_N: np.ndarray, starts: np.ndarray, mask_N: np.ndarray | None) -> bytes:
    """One record.

    Args:
        tokens_N: little-endian unsigned integers of 2 or 4 bytes.
        starts: offsets below N.
        mask_N: bool, or None for a chunk without masks.
    """
    magic = _PLAIN if mask_N is None else _MASKED
    header = _HEADER.pack(magic, len(tokens_N), len(starts), tokens_N.itemsize)
    bits = b"" if mask_N is None else np.packbits(mask_N, bitorder="little").tobytes()
    return header + np.asarray(starts, "<u4").tobytes() + tokens_N.tobytes() + bits


def join(records: Iterable[bytes], count: int, dtype: np.dtype, *, masked: bool) -> Stream:
    """The chunks of a shard as one stream.

    Args:
        records: in order.
        count: N that they must have together.
        dtype: of the tokens.
        masked: they must have loss masks; else they must not.

    Raises:
        ValueError: chunks that contradict these, or themselves.
    """
    tokens_N = np.empty(count, dtype)
    mask_N = np.empty(count, bool) if masked else None
    starts = []
    done = 0
    for record in records:
        magic, tokens, begun, itemsize = _HEADER.unpack_from(record)
        if magic not in (_PLAIN, _MASKED) or itemsize != dtype.itemsize:
            raise ValueError(f"a record is not a chunk of {dtype.name} tokens")
        if (magic == _MASKED) != masked:
            raise ValueError(
                "it has loss masks, and the manifest says none"
                if magic == _MASKED
                else "it has no loss masks, and the manifest says so many tokens are learned"
            )
        body = _HEADER.size + 4 * begun
        end = body + tokens * itemsize
        if len(record) != end + (-(-tokens // 8) if masked else 0) or done + tokens > count:
            raise ValueError(f"its records do not hold the {count} tokens of the manifest")
        here = slice(done, done + tokens)
        starts.append(np.frombuffer(record, "<u4", begun, _HEADER.size).astype(np.int64) + done)
        tokens_N[here] = np.frombuffer(record, dtype.newbyteorder("<"), tokens, body)
        if mask_N is not None:
            bits = np.frombuffer(record, np.uint8, -1, end)
            mask_N[here] = np.unpackbits(bits, count=tokens, bitorder="little")
        done += tokens
    if done != count:
        raise ValueError(f"it holds {done} tokens, manifest says {count}")
    return Stream(tokens_N, np.concatenate(starts), mask_N)

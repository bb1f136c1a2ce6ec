"""Safetensors files written tensor by tensor; the library's own writer wants all at once.

The format (github.com/huggingface/safetensors): the length of a JSON header as 8 bytes, the header
with dtype, shape and place of each tensor, then the values, row-major and little-endian.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gchat.exporting.place import flush

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""numpy's names of the formats (bfloat16 is that of ml_dtypes)."""


class Shard(NamedTuple):
    """Tensors of one file, in order."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]


def shards(
    shapes: Mapping[str, tuple[int, ...]], name: str, *, item_bytes: int, most: int
) -> list[Shard]:
    """Divides tensors over files.

    Args:
        shapes: of all tensors, in the order in which they are written.
        name: of the file where one is enough: model.safetensors.
        item_bytes: of a value.
        most: bytes of a file; a tensor is never divided.
    """
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for tensor, shape in shapes.items():
        own = item_bytes * int(np.prod(shape))
        if parts[-1] and size + own > most:
            parts.append({})
            size = 0
        parts[-1][tensor] = shape
        size += own
    if len(parts) == 1:
        return [Shard(name, parts[0])]
    stem, _, suffix = name.rpartition(".")
    count = len(parts)
    return [
        Shard(f"{stem}-{i:05d}-of-{count:05d}.{suffix}", part) for i, part in enumerate(parts, 1)
    ]


def write(path: Path, shard: Shard, kind: str, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    """Writes one file.

    Args:
        path: of the file.
        shard: its tensors.
        kind: F32, F16 or BF16.
        tensors: gives at least the shard's, in its order; no more are taken.
    """
    dtype = _dtype(kind)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shard.shapes.items():
        size = dtype.itemsize * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values are aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for wanted in shard.shapes:
            name, values = next(tensors)
            assert name == wanted, (name, wanted)
            file.write(np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data)
        flush(file)


def _dtype(kind: str) -> np.dtype:
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)

    return np.dtype(DTYPES[kind])

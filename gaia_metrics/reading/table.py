"""A run's values as one Arrow table, and its cache on disk (metrics/compact.parquet)."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int64()),
        ("time", pa.float64()),
        ("value", pa.float64()),
    ]
)


def column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Wrap numpy memory as an Arrow array; pa.array() would import pandas, which takes a second."""
    dense = np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(dense), [None, pa.py_buffer(dense)])


def constant(text: str, count: int) -> pa.DictionaryArray:
    """Repeat one text `count` times, stored once."""
    zeros = column(np.zeros(count, np.int32), pa.int32())
    data = text.encode()
    ends = pa.py_buffer(np.array([0, len(data)], np.int32))
    words = pa.StringArray.from_buffers(1, ends, pa.py_buffer(data))
    return pa.DictionaryArray.from_arrays(zeros, words)


def last_of_each(keys: np.ndarray) -> np.ndarray:
    """Return the indices that sort `keys`, the last of equal ones (a value logged twice)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    keep = np.ones(len(keys), bool)
    keep[:-1] = ordered[1:] != ordered[:-1]
    return order[keep]


def load_compact(path: Path, state: list) -> pa.Table | None:
    """Read the cache; None where it does not belong to these segments."""
    try:
        file = pq.ParquetFile(path)
        meta = file.schema_arrow.metadata or {}
        if json.loads(meta.get(b"gaia.segments", b"null")) != [list(item) for item in state]:
            return None
        return file.read()
    except (OSError, ValueError, pa.ArrowException):
        return None


def save_compact(path: Path, table: pa.Table, state: list) -> None:
    """Write the cache, with the names and sizes of the segments it was made from."""
    meta = {"gaia.segments": json.dumps(state)}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata(meta), temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError:  # only a cache: a folder that cannot be written is read without it
        temporary.unlink(missing_ok=True)

"""Values in long form as CSV and Parquet files, each one whole or not there."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from gaia.extras import install
from gaia_metrics.errors import MetricsError
from gaia_metrics.storage import atomic


def save(columns: Mapping[str, list], out: Path) -> None:
    """Write columns to a .parquet file, or as CSV to one of any other name.

    Raises:
        MetricsError: the file cannot be written, or pyarrow is missing.
    """
    target = out.resolve()  # a link stays one
    if target.is_dir():
        raise MetricsError(f"--out={str(out)!r} is a folder", "give a file in it")
    data = _parquet(columns) if out.suffix == ".parquet" else _csv(columns)
    try:
        if target.exists() and not target.is_file():  # /dev/stdout, a pipe
            target.write_bytes(data)
        else:
            atomic.replace(target, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MetricsError(
            f"--out={str(out)!r} cannot be written ({error.strerror})",
            "give a file in a folder that is there and can be written",
        ) from error


def write_csv(columns: Mapping[str, list], target: TextIO) -> None:
    """Write columns as CSV."""
    writer = csv.writer(target)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))


def _csv(columns: Mapping[str, list]) -> bytes:
    target = io.StringIO(newline="")
    write_csv(columns, target)
    return target.getvalue().encode("utf-8", "backslashreplace")


def _parquet(columns: Mapping[str, list]) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MetricsError("pyarrow is not installed", f"{install('ui')}, or give *.csv") from error
    target = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), target, compression="zstd")
    return target.getvalue()

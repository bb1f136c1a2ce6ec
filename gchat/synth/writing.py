"""Files of synthetic rows: whole or not at all, and never one of somebody else replaced."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.errors import ConfigError, DataError


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises ConfigError where a file cannot be written, or lies there already."""
    if not out.parent.is_dir():
        raise ConfigError(f"the folder {str(out.parent)!r} does not exist", "make it first")
    if out.is_dir():
        raise ConfigError(f"{str(out)!r} is a folder", "name a file, such as rows.jsonl")
    if out.exists() and not overwrite:
        raise ConfigError(f"{str(out)!r} exists", "choose another name, or give --overwrite")


def write_rows(out: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows as lines of JSON, atomically; how many.

    Raises:
        DataError: there is none.
    """
    count = 0
    with storage.open_atomic(out) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
        if not count:
            raise DataError("the input gave no row", "use more text")
    return count

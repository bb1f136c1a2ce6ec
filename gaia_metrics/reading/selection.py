"""Which run a key means where it must be one: what is deleted does not come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from gaia_metrics.errors import MetricsError


def one(rows: Sequence[dict], key: str) -> dict:
    """Find the one run that has `key` as path, or else as id, folder name or name.

    Args:
        rows: what `runs()` of a source gives; those of a database have no path.

    Raises:
        MetricsError: there is none, or several.
    """
    matching = [row for row in rows if "path" in row and key == row["path"]]
    matching = matching or [row for row in rows if key in _keys(row)]
    if not matching:
        raise MetricsError(f"run={key!r} is not there", "see `gaia-metrics ls`")
    if len(matching) > 1:
        places = " and ".join(row.get("path", row["run"]) for row in matching)
        raise MetricsError(f"run={key!r} means several: {places}", "give one of these")
    return matching[0]


def _keys(row: dict) -> tuple[str, ...]:
    folder = (PurePath(row["path"]).name,) if "path" in row else ()
    return (row["run"], row["name"], *folder)

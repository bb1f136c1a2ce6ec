"""These checks are of what is asked of a source: which one run, how many points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from gaia_metrics.errors import MetricsError


def one(rows: Sequence[dict], key: str) -> dict:
    """Find the one run that has `key` as path, or else as id, folder name or name.

    For what cannot be undone: a key of several runs is a mistake.

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


def check_points(points: int, least: int = 0) -> None:
    """Raise MetricsError for a number that would put a whole series into one point."""
    if points < least:
        every = ", or 0 for all" if least == 0 else ""
        raise MetricsError(f"points={points}", f"give 1 or more{every}")

"""Notes on segments that a receiver has acknowledged: name and size; a grown one goes again.

`synced.json` is written by `sync`, `pN.synced.json` by process N at an end where all had arrived.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from gaia_metrics.errors import MetricsError
from gaia_metrics.storage import folder


def acknowledged(metrics: Path) -> dict[str, int]:
    """Sizes of the segments that have arrived whole, by file name."""
    sizes: dict[str, int] = {}
    for marker in [*sorted(metrics.glob("p*.synced.json")), metrics / "synced.json"]:
        sizes |= folder.read_json(marker)
    return sizes


def note(metrics: Path, arrived: Iterable[Path], process: int | None = None) -> None:
    """Add segments to the marker; where it cannot be written they are sent once more."""
    marker = metrics / ("synced.json" if process is None else f"p{process}.synced.json")
    with contextlib.suppress(OSError, MetricsError):
        sizes = {path.name: path.stat().st_size for path in arrived}
        folder.write_json(marker, folder.read_json(marker) | sizes)

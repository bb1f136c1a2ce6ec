"""An output that is written beside its place and moved there whole: how it is refused."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from gaia.errors import DataError
from gaia.storage import FULL


def check_room(out: Path, needed: int, what: str) -> None:
    """Checks that the disk of `out` can hold what is written.

    Args:
        out: what will be there; its folder exists.
        needed: bytes that are written.
        what: writes them, for the message: "the export".

    Raises:
        DataError: there is less room.
    """
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise DataError(
            f"no space left on device: {out.parent} has {free / 1e6:,.1f} MB free, {what} takes "
            f"up to {needed / 1e6:,.1f} MB while it is written",
            "make room, or choose another --out",
        )


@contextlib.contextmanager
def refusing_os_errors(out: Path) -> Iterator[None]:
    """Turns an OSError of writing `out` into a DataError that names it and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DataError(
                f"no space left on device: {out.parent} is full, nothing was written to {out}",
                "make room, or choose another --out",
            ) from None
        raise DataError(
            f"out = {str(out)!r} cannot be written ({error.strerror})", "choose another --out"
        ) from None

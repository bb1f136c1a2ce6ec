"""Files that are either the old ones or the new ones, whatever happens to the process."""

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a part takes room on a disk that is full
        raise


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a file created in it is there after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A real file system that is soon full."""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own with so much room; skips where mounting is not allowed."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = (b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())
    if libc.mount(*options) != 0:
        pytest.skip(f"cannot mount a small file system here ({os.strerror(ctypes.get_errno())})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """A file that takes all room but `leave` bytes."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(b"x" * max(0, free - leave))
    return filler

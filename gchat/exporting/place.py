"""Files beside their place until they are whole: an export appears at once, or not at all.

OUT's folder/.NAME.exporting/        what is being written; of a killed export, cleared by the next
OUT's folder/.NAME.exporting/whole   all is written, and files are being moved to their places
OUT's folder/.NAME.exporting.lock    held by the process that writes
OUT's folder/.NAME.replaced/         the folder that was there before, until the new one is
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError
from gaia.whole_output import check_room, refusing_os_errors
from gaia.writer_lock import WriterLock

FACTS = "export.json"
"""File of an exported folder that says where it comes from."""
_WHOLE = "whole"


@contextlib.contextmanager
def beside(out: Path, needed: int) -> Iterator[Path]:
    """A folder to write in, which is gone in the end; whoever enters moves its files himself.

    Args:
        out: what will be there.
        needed: bytes that the export takes while it is written.

    Raises:
        FolderInUse: another process exports to `out`.
        DataError: the disk is full, or `out` cannot be written.
    """
    partial = _partial(out)
    with refusing_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with WriterLock(partial.with_name(f"{partial.name}.lock"), f"an export to {out}"):
            shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
            if out.exists():
                shutil.rmtree(_replaced(out), ignore_errors=True)  # the same
            check_room(out, needed, "the export")
            try:
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.exporting")


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def was_moved(out: Path, name: str) -> bool:
    """Tells whether an export to `out`, killed since, had moved its file `name` to its place."""
    partial = _partial(out)
    return (partial / _WHOLE).exists() and not (partial / name).exists()


def check_free(out: Path, *, overwrite: bool, is_export: bool) -> None:
    """Raises ConfigError where something lies at `out` that may not be replaced.

    Args:
        out: file or folder.
        overwrite: replace an export that lies there.
        is_export: what lies there is an export of this kind, as its content says.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_export:
        raise ConfigError(f"out = {str(out)!r} holds something else", "choose another --out")
    if not overwrite:
        raise ConfigError(
            f"out = {str(out)!r} holds an export", "add --overwrite, or choose another --out"
        )


def move_folder(partial: Path, out: Path) -> None:
    """Puts a finished folder in its place; an export that lies there goes when it is replaced."""
    old = _replaced(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def move_files(partial: Path, moves: Mapping[str, Path]) -> None:
    """Puts finished files in their places, in order: the last one says that all are there.

    Args:
        partial: the folder they were written in.
        moves: places by the files' names in it.
    """
    (partial / _WHOLE).touch()
    for name, out in moves.items():
        os.replace(partial / name, out)


def flush(file: Any) -> None:
    """Waits until a file's content is on disk."""
    file.flush()
    os.fsync(file.fileno())

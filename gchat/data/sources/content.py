"""The content of listed files as a fingerprint: names, sizes and SHA-256, wherever they lie.

A copy of a corpus has other times than the corpus itself, on another machine too, so times say
nothing of a text. Hashes of large inputs are remembered by path, size, times and inode, so that a
second start does not read them through again:

    $GAIA_HOME/hashes/KEY.json    of each folder: {file name: [marks of the file, SHA-256]}
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.errors import DataError
from gchat.data import pool
from gchat.data.progress import progress_bar

_LARGE_BYTES = 256 << 20  # of all files: above this, hashes are remembered and progress is shown
_BLOCK = 4 << 20
_TOLD_AFTER_S = 2.0
_SETTLED_NS = 2 * 10**9  # a file may change again within one tick of its file system's clock


def shown(file: Path | str) -> str:
    """A path as text that UTF-8 can hold, also where its bytes are none."""
    return os.fsencode(file).decode("utf-8", "replace")


class Listing:
    """Files that an input names, and what tells them from others.

    Args:
        paths: of the files.
        sizes: in bytes, of each.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self._paths, self._sizes = tuple(paths), tuple(sizes)

    @functools.cached_property
    def facts(self) -> list[list[Any]]:
        """Name, size and SHA-256 of each file, which is read through unless that was done before.

        Raises:
            DataError: a file cannot be read.
        """
        return self._named(_hashes(self._paths, self._sizes))

    @functools.cached_property
    def identity(self) -> str:
        """A hash that changes with the files' names, sizes and content."""
        return _hash(self.facts)

    @property
    def former_facts(self) -> list[list[Any]] | None:
        """The facts by the rule before 2026-12, with times for hashes; None where it said the same.

        Work that began under that rule goes on while its files are untouched.
        """
        if sum(self._sizes) <= _LARGE_BYTES:
            return None
        return self._named([path.stat().st_mtime_ns for path in self._paths])

    @property
    def former_identity(self) -> str | None:
        """The identity by the rule before 2026-12; None where it said the same."""
        facts = self.former_facts
        return None if facts is None else _hash(facts)

    def _named(self, marks: Sequence[Any]) -> list[list[Any]]:
        return [
            [shown(path.name), size, mark]
            for path, size, mark in zip(self._paths, self._sizes, marks, strict=True)
        ]


def _hash(facts: list[list[Any]]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _hashes(paths: Sequence[Path], sizes: Sequence[int]) -> list[str]:
    """SHA-256 of each file; those of large inputs are remembered, and computed in threads."""
    if sum(sizes) <= _LARGE_BYTES:
        progress = _Progress(0, shown=False)
        return [_sha256(path, progress) for path in paths]
    memory = _Memory()
    known = {path: digest for path in paths if (digest := memory.get(path))}
    todo = [path for path in paths if path not in known]
    total = sum(size for path, size in zip(paths, sizes, strict=True) if path not in known)
    try:
        with _Progress(total, shown=True) as progress:
            for path, marks, digest in _hashed(todo, progress):
                known[path] = digest
                memory.put(path, marks, digest)
    finally:
        memory.save()  # also where it was interrupted
    return [known[path] for path in paths]


def _hashed(paths: Sequence[Path], progress: "_Progress") -> Iterator[tuple[Path, list[int], str]]:
    """Each file with its marks before it was read and its hash, as they come."""

    def one(path: Path) -> tuple[Path, list[int], str]:
        marks = _marks(path)
        return path, marks, _sha256(path, progress)

    with ThreadPoolExecutor(max(1, min(8, pool.cores())), "gchat-hash") as threads:
        try:
            for future in as_completed([threads.submit(one, path) for path in paths]):
                yield future.result()
        except BaseException:  # Ctrl-C does not wait for the end of a large file
            progress.stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise


def _sha256(path: Path, progress: "_Progress") -> str:
    digest = hashlib.sha256()
    with _one_line(path), open(path, "rb") as file:
        while (block := file.read(_BLOCK)) and not progress.stop.is_set():
            digest.update(block)
            progress.add(len(block))
    return digest.hexdigest()


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{shown(path)} cannot be read ({error.strerror})", "check its permissions"
        ) from error


class _Progress:
    """A bar on a terminal, one line elsewhere, both only where hashing takes longer than that."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._total, self._began = total, time.monotonic()
        self._told = not shown or sys.stderr.isatty()
        self._bar = progress_bar("hash", total, None if shown else False, delay=_TOLD_AFTER_S)

    def add(self, count: int) -> None:
        """Counts bytes that were read."""
        with self._lock:
            self._bar.update(count)
            if not self._told and time.monotonic() - self._began > _TOLD_AFTER_S:
                self._told = True
                said = f"hashing {self._total / 1e9:,.1f} GB of input, once for all starts"
                print(said, file=sys.stderr, flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _marks(path: Path) -> list[int]:
    """Facts that change where a file is written to, or another takes its place (inode)."""
    with _one_line(path):
        facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


class _Memory:
    """Hashes that were computed before, one small file for each folder of the input."""

    def __init__(self) -> None:
        self._folder = storage.home() / "hashes"
        self._known: dict[str, dict[str, Any]] = {}
        self._new: dict[str, dict[str, Any]] = {}

    def get(self, path: Path) -> str | None:
        """The hash of a file that is as it was; None for others."""
        folder = os.path.realpath(path.parent)
        if folder not in self._known:
            self._known[folder] = self._read(folder)
        marks, digest = self._known[folder].get(path.name) or (None, None)
        return digest if marks == _marks(path) else None

    def put(self, path: Path, marks: list[int], digest: str) -> None:
        """Remembers a hash, unless the file may have changed while it was computed."""
        written = max(marks[1], marks[2])
        if marks == _marks(path) and abs(time.time_ns() - written) > _SETTLED_NS:
            self._new.setdefault(os.path.realpath(path.parent), {})[path.name] = [marks, digest]

    def save(self) -> None:
        """Keeps what is new; where that is not possible, the next start computes it again."""
        for folder, new in self._new.items():
            with contextlib.suppress(storage.StorageError, OSError):
                storage.write_text(self._file(folder), json.dumps(self._read(folder) | new))

    def _read(self, folder: str) -> dict[str, Any]:
        try:
            kept = json.loads(self._file(folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _file(self, folder: str) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]}.json"

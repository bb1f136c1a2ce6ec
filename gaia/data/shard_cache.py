"""Whole shards of a gs:// data set on a bounded local disk, shared by the processes of a host.

Reading records straight from a bucket costs one request each and starves an accelerator; whole
shards cost one request for tens of thousands of rows. Files are named by their checksum, so data
sets may share a folder and a shard that was prepared anew is another file.

    FOLDER/<crc32c>-<bytes>-<name>          a shard that was checked against its manifest
    FOLDER/<crc32c>-<bytes>-<name>.part     one that is being fetched, at its full size already
    FOLDER/<crc32c>-<bytes>-<name>.lock     held shared while in use, exclusively while fetched
    FOLDER/room.lock                        held while room is made

The locks are flock(2): the kernel releases them however a process ends, so a `.part` whose lock is
free is a leftover and goes first when room is needed; shards go in the order of their last use.
"""

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import google_crc32c

from gaia import storage
from gaia.data.manifest import ShardInfo
from gaia.errors import ConfigError, DataError
from gaia.storage import gcs

LIMIT_BYTES = 32 << 30
_DAMAGED = 3  # downloads with a wrong checksum before the object itself is blamed
_POLL_S = 0.05
_PART, _LOCK = ".part", ".lock"
_OURS = re.compile(r"[0-9a-f]{8}-\d+-.")


@dataclass
class CacheStats:
    """Counts of a cache so far; `take` gives the differences since it was last asked."""

    hits: int = 0
    """Shards that were on disk already."""
    misses: int = 0
    """Shards that were fetched."""
    bytes: int = 0
    """Bytes that arrived, repeated ones included."""
    damaged: int = 0
    """Downloads that did not match their checksum."""
    evicted: int = 0
    """Files removed to make room."""


class ShardCache:
    """Fetches shards of one data set and lends them out as local files. Thread-safe.

    Args:
        uri: gs:// prefix of the data set.
        folder: of the cache; default `$GAIA_HOME/shards`.
        limit_bytes: most bytes that all files in the folder take together.
        patience_s: seconds without an answer or a byte before a fetch fails.
        stop: ends waiting fetches from another thread.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        uri: str,
        *,
        folder: str | Path | None = None,
        limit_bytes: int = LIMIT_BYTES,
        patience_s: float = gcs.PATIENCE_S,
        stop: threading.Event | None = None,
    ) -> None:
        self.uri = uri
        self.folder = Path(folder) if folder is not None else storage.home() / "shards"
        self.limit_bytes = limit_bytes
        self.stats = CacheStats()
        self._stop = stop or threading.Event()
        self._patience = gcs.Patience(patience_s, self._stop)
        self._lock = threading.Lock()
        self._taken = (time.monotonic(), CacheStats())
        storage.make_folder(self.folder)

    @contextlib.contextmanager
    def open(self, shard: ShardInfo) -> Iterator[Path]:
        """The shard as a local file, which stays there until the context ends.

        Raises:
            DataError: there is no such object, or it is not what the manifest says.
            StorageError: the bucket does not answer, or the disk is full.
            ConfigError: the shard is larger than the cache.
        """
        path = self.folder / f"{shard.crc32c}-{shard.bytes}-{shard.name}"
        counted = False
        with self._open_lock(path) as lock:
            while True:
                self._flock(lock, fcntl.LOCK_SH)
                if path.exists():
                    break
                fcntl.flock(lock, fcntl.LOCK_UN)
                self._flock(lock, fcntl.LOCK_EX)  # others that want this shard wait here
                if not path.exists():
                    self._count(misses=1)
                    counted = True
                    self._fetch(shard, path)
            if not counted:
                self._count(hits=1)
            with contextlib.suppress(OSError):
                os.utime(path)  # last use
            yield path

    def drop(self, shard: ShardInfo) -> None:
        """Removes a file that turned out to be damaged on this disk."""
        name = f"{shard.crc32c}-{shard.bytes}-{shard.name}"
        (self.folder / name).unlink(missing_ok=True)

    def take(self) -> dict[str, float]:
        """Figures since the last call: bytes/s that arrived, hits and misses."""
        with self._lock:
            (since, before), now = self._taken, time.monotonic()
            current = CacheStats(
                **{f.name: getattr(self.stats, f.name) for f in fields(CacheStats)}
            )
            self._taken = (now, current)
        seconds = max(now - since, 1e-6)
        return {
            "data/fetch_bytes_per_s": (current.bytes - before.bytes) / seconds,
            "data/cache_hits": float(current.hits),
            "data/cache_misses": float(current.misses),
        }

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.stats, name, getattr(self.stats, name) + value)

    # ── Locks ─────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _open_lock(self, path: Path) -> Iterator[int]:
        handle = os.open(f"{path}{_LOCK}", os.O_CREAT | os.O_RDWR, 0o666)
        try:
            yield handle
        finally:
            os.close(handle)  # which releases it

    def _flock(self, handle: int, how: int) -> None:
        """Waits for a lock, but not beyond the end of the reader."""
        while True:
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if self._stop.wait(_POLL_S):
                    raise gcs.Stopped(f"{self.uri} was not read to the end", "") from None

    # ── Fetching ──────────────────────────────────────────────────────────────────────────────

    def _fetch(self, shard: ShardInfo, path: Path) -> None:
        """Downloads, checks and puts in place; the shard's lock is held exclusively."""
        where = storage.join(self.uri, shard.name)
        part = path.with_name(path.name + _PART)
        try:
            for attempt in range(1, _DAMAGED + 1):
                self._reserve(part, shard)
                problem = self._download(where, shard, part)
                if problem is None:
                    os.replace(part, path)
                    return
                self._count(damaged=1)
                if attempt == _DAMAGED or "bytes" in problem:
                    times = f" in each of {attempt} downloads" * (attempt > 1)
                    raise DataError(
                        f"shard {where} {problem}{times}",
                        "the object is not what was prepared: upload it again with "
                        "`gchat data upload --force`",
                    )
        except OSError as error:
            raise self._full(error) from error
        except gcs.MissingObject as error:
            raise DataError(
                f"shard {where} does not exist, though manifest.json lists it",
                "upload it again with `gchat data upload`",
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _download(self, where: str, shard: ShardInfo, part: Path) -> str | None:
        """Fills the reserved file; what is wrong with the result, or None."""
        crc = 0

        def arrived(data: bytes) -> None:
            nonlocal crc
            crc = google_crc32c.extend(crc, data)
            self._count(bytes=len(data))

        with open(part, "r+b") as file:
            size = gcs.download(where, file, on_bytes=arrived, patience=self._patience)
        if size != shard.bytes:
            return f"has {size} bytes, manifest says {shard.bytes}"
        if f"{crc:08x}" != shard.crc32c:
            return f"has crc32c {crc:08x}, manifest says {shard.crc32c}"
        return None

    # ── Room ──────────────────────────────────────────────────────────────────────────────────

    def _reserve(self, part: Path, shard: ShardInfo) -> None:
        """Makes an empty file of the shard's size, so that its room is taken for all to see."""
        if shard.bytes > self.limit_bytes:
            raise ConfigError(
                f"data.cache_gib is {self.limit_bytes / 2**30:.3g}, less than shard {shard.name} "
                f"({shard.bytes / 2**30:.3g} GiB)",
                "use a larger cache",
            )
        part.unlink(missing_ok=True)
        while True:
            with self._open_lock(self.folder / "room") as room:
                self._flock(room, fcntl.LOCK_EX)
                if self._make_room(shard.bytes, self.limit_bytes) and self._take(part, shard.bytes):
                    return
            if self._stop.wait(_POLL_S):  # every file is in use; one will be free
                raise gcs.Stopped(f"{self.uri} was not read to the end", "")

    def _take(self, part: Path, size: int) -> bool:
        """Takes the room on the disk; False where files that are in use have to be waited for.

        The disk may be smaller than the limit, or others may use it: unused files then go one by
        one until there is room, and OSError says that even all of them were not enough.
        """
        waiting: list[Path] = []
        unused = iter([path for _, _, path in sorted(self._files())])
        while True:
            try:
                _allocate(part, size)
                return True
            except OSError as error:
                part.unlink(missing_ok=True)
                if error.errno not in storage.FULL:
                    raise
                for path in unused:
                    if self._remove_unused(path):
                        break
                    waiting.append(path)
                else:
                    if not waiting:
                        raise
                    return False

    def _make_room(self, needed: int, limit: int) -> bool:
        """Removes unused files, the longest unused first, until `needed` bytes fit the limit."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + needed <= limit:
                break
            if self._remove_unused(path):
                used -= size
        return used + needed <= limit

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of shards; leftovers of killed processes count as oldest."""
        files = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_LOCK) or _OURS.match(entry.name) is None:
                continue  # never touch what somebody else keeps in this folder
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat()
                age = 0.0 if entry.name.endswith(_PART) else facts.st_mtime
                files.append((age, facts.st_size, Path(entry.path)))
        return files

    def _remove_unused(self, path: Path) -> bool:
        with self._open_lock(Path(str(path).removesuffix(_PART))) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            path.unlink(missing_ok=True)
            self._count(evicted=1)
            return True

    def _full(self, error: OSError) -> gcs.StorageError:
        if error.errno in storage.FULL:
            return gcs.StorageError(
                f"the shard cache {self.folder} is on a full disk ({error.strerror})",
                "make room, or choose another --data.cache-dir",
            )
        return gcs.StorageError(
            f"the shard cache {self.folder} cannot be written ({error.strerror or error})",
            "choose another --data.cache-dir",
        )


def _allocate(path: Path, size: int) -> None:
    """A file of `size` bytes whose blocks are taken; OSError (disk full) leaves none behind."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        file.truncate(size)  # no promise of room (macOS, some network disks): writes may fail

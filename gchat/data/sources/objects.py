"""Text in a bucket for `--data.text gs://…`: objects are listed first and fetched when needed.

A run is known by what was listed, and its units may be fetched hours later. So the request names
the listed generation, and the bytes are compared with the listed checksum while they arrive: what
lies on the disk is what the run's fingerprint says, or nothing is.
"""

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from gaia import storage
from gaia.errors import DataError
from gaia.storage import gcs
from gchat.data.sources import files, text
from gchat.data.sources.unit import Corpus, Tally

_DAMAGED = 3  # downloads with a wrong checksum before the service is blamed
_REMEDY = "put the old text back, or start a new run"


def listed(
    place: str, column: str, unit_bytes: Callable[[int], int]
) -> tuple[Corpus, list[list[Any]]]:
    """Lists a prefix or one object; each object is fetched when one of its units is first read.

    Args:
        place: gs:// object or prefix.
        column: field of .jsonl and .parquet objects.
        unit_bytes: size of a unit of so many bytes of text.

    Returns:
        The corpus, and name, size and mark of each object.

    Raises:
        DataError: no text there.
    """
    objects = gcs.list_objects(place)
    single = gcs.stat(place) if not objects else None
    if single is not None:
        place, _, name = place.rpartition("/")
        objects = {name: single}
    chosen = {
        name: thing
        for name, thing in sorted(objects.items())
        if files.kind(Path(name)) in text.ENDINGS and thing.size
        and not any(part.startswith(".") for part in name.split("/"))
    }  # fmt: skip
    if not chosen:
        raise DataError(
            f"data.text = {place!r} holds no {', '.join(text.ENDINGS)} object", "check the address"
        )
    marks = [[name, o.size, o.crc32c or o.generation] for name, o in chosen.items()]
    key = hashlib.sha256(json.dumps([place, marks]).encode()).hexdigest()[:12]
    folder = storage.home() / "text" / "objects" / key
    limit = unit_bytes(sum(thing.size for thing in chosen.values()))
    fetches = {
        folder / name: Fetch(f"{place.rstrip('/')}/{name}", folder / name, thing)
        for name, thing in chosen.items()
    }
    units = []
    for group in text.grouped(_parts(folder, chosen, limit), limit):
        unit = text.unit_of(group, column, text.DOCUMENT_CHARS)
        needed = [fetches[file] for file in dict.fromkeys(part.file for part in group)]
        reader = functools.partial(_fetched, needed, unit.documents)
        units.append(dataclasses.replace(unit, documents=reader, rows=None))
    return Corpus(units=units, sources=tuple(chosen), identity={}), marks


def _parts(folder: Path, objects: Mapping[str, gcs.Object], part_bytes: int) -> Iterator[text.Part]:
    for name, thing in objects.items():
        if files.kind(Path(name)) == ".parquet":  # its row groups are known only when it is here
            yield text.Part(folder / name, None, thing.size, name)
        else:
            for part in text.parts(folder / name, thing.size, part_bytes):
                yield dataclasses.replace(part, name=name)


class Fetch:
    """Downloads one object as it was listed, once.

    Args:
        uri: of the object.
        path: where it goes.
        listed: size, checksum and generation that it had.
    """

    def __init__(self, uri: str, path: Path, listed: gcs.Object) -> None:
        self._uri, self._path, self._listed = uri, path, listed
        self._lock = threading.Lock()
        self._sound = False

    def __call__(self) -> None:
        """Makes the file available.

        Raises:
            DataError: the object is no longer there as it was listed.
            StorageError: the bucket does not answer, or the disk is full.
        """
        with self._lock:
            # What an earlier process left is read once more: disks lose bits, and older versions
            # of this program did not compare what arrived.
            if not self._sound and not self._is_kept():
                self._download()
            self._sound = True

    def _is_kept(self) -> bool:
        if not self._path.exists() or self._path.stat().st_size != self._listed.size:
            return False
        return self._listed.crc32c in ("", storage.crc32c_file(self._path))

    def _download(self) -> None:
        for attempt in range(1, _DAMAGED + 1):
            try:
                with storage.open_atomic(self._path) as file:
                    self._fill(file)
                return
            except gcs.MissingObject as error:
                if attempt == _DAMAGED or not self._is_written_again():
                    raise DataError(
                        f"{self._uri} was replaced or deleted after the run listed it", _REMEDY
                    ) from error
            except _Damaged as error:
                if attempt == _DAMAGED:
                    raise DataError(
                        f"{self._uri} arrived with {error} in each of {attempt} downloads",
                        "check the network, then go on with --resume",
                    ) from error

    def _fill(self, file: Any) -> None:
        crc = 0

        def arrived(data: bytes) -> None:
            nonlocal crc
            crc = google_crc32c.extend(crc, data)

        size = gcs.download(self._uri, file, on_bytes=arrived, generation=self._listed.generation)
        if size != self._listed.size:
            raise _Damaged(f"{size:,} bytes, not the {self._listed.size:,} that were listed")
        if self._listed.crc32c not in ("", f"{crc:08x}"):
            raise _Damaged(f"crc32c {crc:08x}, not the listed {self._listed.crc32c}")

    def _is_written_again(self) -> bool:
        """True where another generation holds the same bytes, which is then the one to fetch."""
        now, before = gcs.stat(self._uri), self._listed
        if now is None or not now.crc32c:
            return False
        if (now.size, now.crc32c) != (before.size, before.crc32c):
            return False
        self._listed = now
        return True


class _Damaged(Exception):
    """A download is not what was listed; tells the difference."""


def _fetched(needed: Sequence[Fetch], documents: Any, tally: Tally) -> Iterator[str]:
    for fetch in needed:
        fetch()
    return documents(tally)

"""Objects in Google Cloud Storage: one client, one retry policy, errors that name the remedy.

The client is google-cloud-storage (extra `gcs`), imported when an address is first used. What
fails is tried again or explained by gaia.storage.gcs_failures, whose names for callers are
exported here.
`STORAGE_EMULATOR_HOST` sends everything to another server.
"""

import base64
import functools
import importlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from gaia.extras import install
from gaia.storage.gcs_failures import (
    PATIENCE_S,
    ChangedObject,
    Interrupted,
    MissingObject,
    Patience,
    Stopped,
    StorageError,
    attempt,
    explained,
    is_transient,
    split,
    status_of,
)

__all__ = [
    "PATIENCE_S", "TIMEOUT_S", "ChangedObject", "MissingObject", "Object", "Patience", "Stopped",
    "StorageError", "attempt", "blob", "bucket_location", "check_writable", "client", "delete",
    "download", "is_transient",
    "list_names", "list_objects", "read", "split", "stat", "write",
]  # fmt: skip

TIMEOUT_S = (10.0, 60.0)  # to connect; between two bytes


@dataclass(frozen=True)
class Object:
    """One object, as a listing describes it."""

    name: str
    """Full name in its bucket."""
    size: int
    crc32c: str
    """Eight hex digits, as in manifest.json; empty where the service keeps none."""
    generation: int


@functools.cache
def client() -> Any:
    """The process's google-cloud-storage client; its connections are shared by all threads.

    Raises:
        StorageError: the extra or the credentials are missing.
    """
    try:
        storage = importlib.import_module("google.cloud.storage")
        adapters = importlib.import_module("requests.adapters")
    except ImportError as error:
        raise StorageError(
            f"gs:// needs the package {error.name!r}, which is not installed",
            install("gcs"),
        ) from error
    with explained("gs://"):
        made = storage.Client()
        # requests keeps ten connections; more threads than that would open a new one each time.
        for scheme in ("http://", "https://"):
            made._http.mount(scheme, adapters.HTTPAdapter(pool_maxsize=64))
        return made


def blob(uri: str, generation: int | None = None) -> Any:
    """The client's handle of an object; nothing is asked of the service."""
    bucket, name = split(uri)
    return client().bucket(bucket).blob(name, generation=generation)


def download(
    uri: str,
    sink: IO[bytes],
    *,
    on_bytes: Callable[[bytes], None] | None = None,
    patience: Patience | None = None,
    generation: int | None = None,
) -> int:
    """Writes an object to `sink`, going on where a broken connection stopped; returns its bytes.

    The caller checks size and checksum. Without a generation the object may be replaced while it
    is read, and what is there then begins as the one and ends as the other.

    Args:
        uri: of the object.
        sink: takes the bytes as they arrive.
        on_bytes: sees them too.
        patience: with failures that may heal.
        generation: read only this one.

    Raises:
        MissingObject: it is not there, or no longer of this generation.
    """
    source = blob(uri, generation)
    writer = _Writer(sink, on_bytes, patience.stop if patience else None, uri)

    def once() -> None:
        before = writer.done
        try:
            source.download_to_file(
                writer, start=before or None, raw_download=True, checksum=None, retry=None,
                timeout=TIMEOUT_S,
            )  # fmt: skip
        except Exception as error:
            if writer.done > before and is_transient(error):
                went_on = Interrupted()
                went_on.progress = True
                raise went_on from error
            if before and status_of(error) == 416:  # cut off right behind the last byte
                return
            raise

    attempt(once, uri, patience)
    return writer.done


class _Writer:
    """Sink for the body of a download; counts, and ends the download when told to stop."""

    def __init__(
        self,
        sink: IO[bytes],
        on_bytes: Callable[[bytes], None] | None,
        stop: threading.Event | None,
        uri: str,
    ) -> None:
        self.done = 0
        self._sink, self._on_bytes, self._stop, self._uri = sink, on_bytes, stop, uri

    def write(self, data: bytes) -> int:
        if self._stop is not None and self._stop.is_set():
            raise Stopped(f"{self._uri} was not read to the end", "")
        self._sink.write(data)
        self.done += len(data)
        if self._on_bytes is not None:
            self._on_bytes(data)
        return len(data)


def read(uri: str) -> bytes:
    """A whole object. Raises MissingObject where there is none."""
    return attempt(lambda: blob(uri).download_as_bytes(retry=None, timeout=TIMEOUT_S), uri)


def write(
    uri: str, data: bytes, patience: Patience | None = None, *, generation: int | None = None
) -> int:
    """Replaces an object; readers see the old one or the new one. Returns its generation.

    Args:
        uri: of the object.
        data: its new content.
        patience: with failures that may heal.
        generation: replace only this one; 0: only where there is none.

    Raises:
        ChangedObject: another generation is there.
    """

    def once() -> int:
        handle = blob(uri)
        handle.upload_from_string(
            data, checksum="crc32c", if_generation_match=generation, retry=None, timeout=TIMEOUT_S
        )
        return int(handle.generation)

    return attempt(once, uri, patience)


def delete(uri: str, generation: int | None = None, patience: Patience | None = None) -> None:
    """Deletes an object, or only a given generation of it.

    Raises:
        MissingObject: it was gone before.
        ChangedObject: another generation is there.
    """
    asked = 0

    def once() -> None:
        nonlocal asked
        asked += 1
        try:
            blob(uri).delete(if_generation_match=generation, retry=None, timeout=TIMEOUT_S)
        except Exception as error:
            # The answer to an earlier attempt was lost on its way: that one has deleted it.
            if not (asked > 1 and status_of(error) == 404):
                raise

    attempt(once, uri, patience)


def stat(uri: str) -> Object | None:
    """Size, checksum and generation of one object; None where there is none."""

    def once() -> Object | None:
        handle = blob(uri)
        handle.reload(retry=None, timeout=TIMEOUT_S)
        return _object(handle)

    try:
        return attempt(once, uri)
    except MissingObject:
        return None


def list_objects(uri: str) -> dict[str, Object]:
    """Every object below a prefix, by its name relative to it."""
    bucket, prefix = split(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""

    def once() -> dict[str, Object]:
        blobs = client().list_blobs(bucket, prefix=prefix, retry=None, timeout=TIMEOUT_S)
        return {b.name.removeprefix(prefix): _object(b) for b in blobs}

    return attempt(once, uri)


def list_names(uri: str) -> list[str]:
    """Names directly below a prefix: objects and "folders"."""
    bucket, prefix = split(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""

    def once() -> list[str]:
        pages = client().list_blobs(
            bucket, prefix=prefix, delimiter="/", retry=None, timeout=TIMEOUT_S
        )
        names = {b.name for b in pages}
        return sorted({n.removeprefix(prefix).rstrip("/") for n in names | pages.prefixes} - {""})

    return attempt(once, uri)


def check_writable(uri: str) -> None:
    """Writes and deletes a small object, as a run that saves there will.

    Raises:
        StorageError: no such bucket, or a permission is missing; its role is named.
    """
    where = f"{uri.rstrip('/')}/.gaia-write-test-{secrets.token_hex(4)}"
    write(where, b"")
    delete(where)


def bucket_location(uri: str) -> str:
    """Location of a bucket, such as US-CENTRAL1 or the multi-region US.

    Raises:
        StorageError: no such bucket, or its metadata may not be read.
    """
    name = split(uri)[0]

    def once() -> str:
        return str(client().get_bucket(name, retry=None, timeout=TIMEOUT_S).location)

    return attempt(once, uri)


def _object(handle: Any) -> Object:
    crc = base64.b64decode(handle.crc32c).hex() if handle.crc32c else ""
    return Object(handle.name, int(handle.size), crc, int(handle.generation))

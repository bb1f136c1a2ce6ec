"""Local paths and gs:// alike: list, read, write atomically, checksum.

Local files need nothing but the standard library; a `gs://` address goes through gaia.storage.gcs.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import google_crc32c

from gaia.errors import DataError
from gaia.storage import gcs
from gaia.storage.gcs import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK = 1 << 20  # bytes read at a time when a file is hashed


def home() -> Path:
    """The folder of data sets, tokenizers and caches: `$GAIA_HOME`, default `~/.cache/gaia`."""
    value = os.environ.get("GAIA_HOME")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "gaia"


def is_remote(uri: str | os.PathLike) -> bool:
    """True for an object-store address such as `gs://bucket/prefix`."""
    return "://" in os.fspath(uri)


def join(uri: str | os.PathLike, *parts: str) -> str:
    """`uri/part/…` for local paths and addresses alike."""
    return "/".join([os.fspath(uri).rstrip("/") or "/", *parts])


def _below(uri: str | os.PathLike) -> str:
    """The text of an address; StorageError where it is not one of Google Cloud Storage."""
    gcs.split(text := os.fspath(uri))
    return text


def exists(uri: str | os.PathLike) -> bool:
    """True if a file or folder (or a prefix with objects) is there."""
    if is_remote(uri):
        where = _below(uri)
        return (bool(gcs.split(where)[1]) and gcs.stat(where) is not None) or bool(
            gcs.list_names(where)
        )
    return Path(uri).exists()


def list_names(uri: str | os.PathLike) -> list[str]:
    """Sorted names directly under a folder or prefix; empty when it does not exist."""
    if is_remote(uri):
        return gcs.list_names(_below(uri))
    folder = Path(uri)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def size(uri: str | os.PathLike) -> int:
    """Bytes in one file or object."""
    if is_remote(uri):
        facts = gcs.stat(_below(uri))
        if facts is None:
            raise DataError(f"{os.fspath(uri)} does not exist", "check the path")
        return facts.size
    try:
        return Path(uri).stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{os.fspath(uri)} does not exist", "check the path") from error


def read_bytes(uri: str | os.PathLike) -> bytes:
    """The whole content of one file or object."""
    if is_remote(uri):
        return gcs.read(_below(uri))
    try:
        return Path(uri).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{os.fspath(uri)} does not exist", "check the path") from error


def read_text(uri: str | os.PathLike) -> str:
    """The whole content of one UTF-8 file or object.

    Raises:
        DataError: it does not exist, or is not UTF-8.
    """
    try:
        return read_bytes(uri).decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"{os.fspath(uri)} is not UTF-8 at byte {error.start}"
        raise DataError(problem, "it is damaged: bring it again") from None


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """A local file that appears under `path` complete or not at all (tmp + fsync + rename)."""
    target = Path(path)
    with atomic_path(target) as tmp, open(tmp, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary local name for a writer that wants a path; renamed to `path` on success."""
    target = Path(path)
    make_folder(target.parent)
    # The name is hidden, so that a listing never takes a half-written file for a finished one.
    tmp = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield tmp
        _fsync(tmp)
        os.replace(tmp, target)
        _fsync(target.parent)  # without this the rename itself may be lost in a power cut
    except OSError as error:
        if error.errno in FULL or str(tmp) == error.filename:
            raise _unwritable(target, error) from error
        raise  # the caller's own, about another file
    finally:
        tmp.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike) -> None:
    """Makes a local folder and its parents; StorageError where that is not allowed."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: str | os.PathLike, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(
        f"cannot write {os.fspath(path)} ({reason})",
        "make room on the disk and run it again"
        if error.errno in FULL
        else "choose another folder",
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(uri: str | os.PathLike, data: bytes) -> None:
    """Writes one file or object atomically (an object appears only when its upload is complete)."""
    if is_remote(uri):
        gcs.write(_below(uri), data)
        return
    with open_atomic(uri) as file:
        file.write(data)


def write_text(uri: str | os.PathLike, text: str) -> None:
    """Writes one UTF-8 file or object atomically."""
    write_bytes(uri, text.encode("utf-8"))


@contextlib.contextmanager
def local_file(uri: str | os.PathLike) -> Iterator[Path]:
    """A local path with the content of `uri`: itself, or a temporary copy of a remote object."""
    if not is_remote(uri):
        path = Path(uri)
        if not path.is_file():
            raise DataError(f"{path} does not exist", "check the path")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gaia-") as folder:
        copy = Path(folder) / os.fspath(uri).rsplit("/", 1)[-1]
        with open(copy, "wb") as target:
            gcs.download(_below(uri), target)
        yield copy


def crc32c(data: bytes) -> str:
    """CRC32C of a byte string as eight hex digits (the checksum that GCS keeps too)."""
    return f"{google_crc32c.value(data):08x}"


def crc32c_file(path: str | os.PathLike) -> str:
    """CRC32C of a local file as eight hex digits."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = google_crc32c.extend(value, block)
    return f"{value:08x}"


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a local file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Objects in Google Cloud Storage: one client, one retry policy, errors that name the remedy.

The client is google-cloud-storage (extra `gcs`), imported when an address is first used. It does
not retry by itself here: `attempt` does, so that patience, back-off and what people are told are
the same for every call. `STORAGE_EMULATOR_HOST` sends everything to another server.
"""

import base64
import contextlib
import functools
import http.client
import importlib
import random
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from gaia.errors import DataError, GaiaError

T = TypeVar("T")

RETRIED = (408, 429, 500, 502, 503, 504)
TIMEOUT_S = (10.0, 60.0)  # to connect; between two bytes
PATIENCE_S = 600.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 15.0
_ROLES = {
    "storage.objects.get": "roles/storage.objectViewer",
    "storage.objects.list": "roles/storage.objectViewer",
    "storage.objects.create": "roles/storage.objectUser",
    "storage.objects.delete": "roles/storage.objectUser",
    "storage.objects.update": "roles/storage.objectUser",
    "storage.buckets.get": "roles/storage.legacyBucketReader",
}


class StorageError(GaiaError):
    """A path or bucket cannot be read or written."""


class MissingObject(DataError):
    """There is no such object."""


class ChangedObject(StorageError):
    """The object is not, or no longer, what a generation precondition says."""


class Stopped(GaiaError):
    """The reader was closed while it waited; nobody waits for the answer any more."""


@dataclass(frozen=True)
class Object:
    """What a listing says of one object."""

    name: str
    """Full name in its bucket."""
    size: int
    crc32c: str
    """Eight hex digits, as in manifest.json; empty where the service keeps none."""
    generation: int


@dataclass(frozen=True)
class Patience:
    """How failing requests are repeated.

    Attributes:
        seconds: since the last success or the last byte that arrived.
        stop: ends the waiting from another thread.
        on_retry: called with one line on the first failure and once more when it is over.
    """

    seconds: float = PATIENCE_S
    stop: threading.Event | None = None
    on_retry: Callable[[str], None] | None = None


def split(uri: str) -> tuple[str, str]:
    """(bucket, name) of `gs://bucket/name`; the name may be empty.

    Raises:
        StorageError: not such an address.
    """
    match = re.fullmatch(r"gs://([^/]+)/?(.*)", uri)
    if match is None:
        raise StorageError(f"cannot open {uri!r}", "use a local path or gs://bucket/prefix")
    return match[1], match[2]


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
            "install the extra: pip install 'gaia[gcs]'",
        ) from error
    with explained("gs://"):
        found = storage.Client()
        # requests keeps ten connections; more threads than that would open a new one each time.
        for scheme in ("http://", "https://"):
            found._http.mount(scheme, adapters.HTTPAdapter(pool_maxsize=64))
        return found


def blob(uri: str, generation: int | None = None) -> Any:
    """The client's handle of an object; nothing is asked of the service."""
    bucket, name = split(uri)
    return client().bucket(bucket).blob(name, generation=generation)


# ── Failures ──────────────────────────────────────────────────────────────────────────────────


def _status(error: BaseException) -> int | None:
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return int(code)
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: a broken connection, a busy or failing service.

    `requests`, `urllib3` and google-auth each wrap a lost connection in exceptions of their own.
    """
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException):
        return True
    kind = type(error)
    if kind.__module__.startswith(("requests.", "urllib3.")):
        return "Connection" in kind.__name__ or kind.__name__ in _BROKEN
    if kind.__module__.startswith("google.auth.") and kind.__name__ == "TransportError":
        return True
    return _status(error) in RETRIED


_BROKEN = {
    "ChunkedEncodingError", "ReadTimeout", "ConnectTimeout", "Timeout", "ProtocolError",
    "ReadTimeoutError", "IncompleteRead", "SSLError", "ProxyError",
}  # fmt: skip


def attempt(call: Callable[[], T], uri: str, patience: Patience | None = None) -> T:
    """Calls until it succeeds, backing off while the failure is transient.

    Raises:
        GaiaError: one that cannot heal, or patience ran out; the address is named.
        Stopped: `patience.stop` was set while waiting.
    """
    patience = patience or Patience()
    began, wait, told = time.monotonic(), _FIRST_WAIT_S, False
    say = patience.on_retry or (lambda line: print(line, file=sys.stderr, flush=True))
    while True:
        try:
            with explained(uri):
                result = call()
            if told:
                say(f"{uri}: answers again after {time.monotonic() - began:.0f} s")
            return result
        except _Transient as failure:
            error = failure.__cause__ or failure
            if getattr(failure, "progress", False):
                began, wait = time.monotonic(), _FIRST_WAIT_S
        waited = time.monotonic() - began
        if waited + wait > patience.seconds:
            raise StorageError(
                f"{uri} did not answer for {waited:.0f} s ({_short(error)})",
                "check the network and the service's status, then go on with --resume",
            ) from error
        if waited > 2 and not told:
            told = True
            say(f"{uri}: {_short(error)}; trying again for {patience.seconds:.0f} s")
        pause = wait * random.uniform(0.5, 1.0)  # full jitter would bunch short waits
        if patience.stop is None:
            time.sleep(pause)
        elif patience.stop.wait(pause):
            raise Stopped(f"{uri} was not read to the end", "") from error
        wait = min(2 * wait, _LONGEST_WAIT_S)


class _Transient(Exception):
    """Carries a transient failure out of `explained`; `progress` says bytes had arrived."""

    progress = False


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns the client's exceptions into errors of one line with a remedy."""
    try:
        yield
    except (GaiaError, _Transient):
        raise
    except Exception as error:
        if is_transient(error):
            raise _Transient() from error
        found = _explain(uri, error)
        if found is None:
            raise
        raise found from error


def _explain(uri: str, error: Exception) -> GaiaError | None:
    kind = type(error).__name__
    if kind in ("DefaultCredentialsError", "RefreshError", "MalformedError"):
        return StorageError(
            f"no usable Google credentials for {uri} ({_short(error)})",
            "run `gcloud auth application-default login`, or give the VM a service account",
        )
    status = _status(error)
    if status == 401:
        return StorageError(
            f"{uri}: the credentials were not accepted ({_short(error)})",
            "run `gcloud auth application-default login`",
        )
    if status == 403:
        return _forbidden(uri, error)
    if status == 404 and "bucket does not exist" in str(error):
        bucket = f"gs://{split(uri)[0]}"
        return StorageError(
            f"bucket {bucket} does not exist",
            f"check the name, or `gcloud storage buckets create {bucket} --location=REGION`",
        )
    if status == 404:
        return MissingObject(f"{uri} does not exist", "check the path")
    if status == 412:
        return ChangedObject(f"{uri} was written by somebody else meanwhile", "look at it again")
    if status is not None:
        return StorageError(f"{uri}: the service answered {status} ({_short(error)})", "")
    return None


def _forbidden(uri: str, error: Exception) -> StorageError:
    match = re.search(r"storage\.\w+\.\w+", str(error))
    permission = match[0] if match else "access"
    role = _ROLES.get(permission, "roles/storage.objectUser")
    who = re.search(r"\S+@\S+\.gserviceaccount\.com", str(error))
    return StorageError(
        f"permission denied for {uri}: {permission} is missing",
        f"grant {role}: `gcloud storage buckets add-iam-policy-binding gs://{split(uri)[0]} "
        f"--role={role} --member=serviceAccount:{who[0] if who else 'ACCOUNT'}`",
    )


def _short(error: BaseException) -> str:
    """The gist of an exception: clients quote whole URLs and nested causes."""
    text = " ".join(str(getattr(error, "message", "") or error).split())
    if isinstance(error, ConnectionError | OSError) and "refused" in text:
        text = "connection refused"
    text = re.sub(r"(GET|PUT|POST|DELETE|PATCH) https?://\S+: ", "", text)
    status = _status(error)
    return f"{status} {text[:120]}" if status else text[:120] or type(error).__name__


# ── Objects ───────────────────────────────────────────────────────────────────────────────────


def download(
    uri: str,
    sink: IO[bytes],
    *,
    on_bytes: Callable[[bytes], None] | None = None,
    patience: Patience | None = None,
) -> int:
    """Writes an object to `sink`, going on where a broken connection stopped; returns its bytes.

    The caller checks size and checksum: the object may have been replaced in between.
    """
    source = blob(uri)
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
                went_on = _Transient()
                went_on.progress = True
                raise went_on from error
            if before and _status(error) == 416:  # cut off right behind the last byte
                return
            raise

    attempt(once, uri, patience)
    return writer.done


class _Writer:
    """What the client writes a body to; counts, and ends the download when told to stop."""

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


def write(uri: str, data: bytes, patience: Patience | None = None) -> None:
    """Replaces an object; readers see the old one or the new one."""

    def once() -> None:
        blob(uri).upload_from_string(data, checksum="crc32c", retry=None, timeout=TIMEOUT_S)

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
        found = client().list_blobs(bucket, prefix=prefix, retry=None, timeout=TIMEOUT_S)
        return {b.name.removeprefix(prefix): _object(b) for b in found}

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
    attempt(lambda: blob(where).delete(retry=None, timeout=TIMEOUT_S), where)


def bucket_location(uri: str) -> str:
    """Where the bucket lies, such as US-CENTRAL1 or the multi-region US.

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

"""Failures of Google Cloud Storage: some are tried again, the others explained to people.

The service's client does not retry by itself here: `attempt` does, so that patience, back-off and
what people are told are the same for every call (`gaia.storage.gcs` makes them).
"""

import contextlib
import http.client
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from gaia.errors import DataError, GaiaError

T = TypeVar("T")

RETRIED = (408, 429, 500, 502, 503, 504)
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
class Patience:
    """Rules by which failing requests are repeated.

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


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception of the client carries."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return int(code)
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException) -> bool:
    """True where the same request may succeed later: a broken connection, a busy service.

    `requests`, `urllib3` and google-auth each wrap a lost connection in exceptions of their own.
    """
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException):
        return True
    kind = type(error)
    if kind.__module__.startswith(("requests.", "urllib3.")):
        return "Connection" in kind.__name__ or kind.__name__ in _BROKEN
    if kind.__module__.startswith("google.auth.") and kind.__name__ == "TransportError":
        return True
    return status_of(error) in RETRIED


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
        except Interrupted as failure:
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


class Interrupted(Exception):
    """Carries a transient failure from `explained` to `attempt`; `progress`: bytes had arrived."""

    progress = False


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns the client's exceptions into errors of one line with a remedy."""
    try:
        yield
    except (GaiaError, Interrupted):
        raise
    except Exception as error:
        if is_transient(error):
            raise Interrupted() from error
        explanation = _explain(uri, error)
        if explanation is None:
            raise
        raise explanation from error


def _explain(uri: str, error: Exception) -> GaiaError | None:
    kind = type(error).__name__
    if kind in ("DefaultCredentialsError", "RefreshError", "MalformedError"):
        return StorageError(
            f"no usable Google credentials for {uri} ({_short(error)})",
            "run `gcloud auth application-default login`, or give the VM a service account",
        )
    status = status_of(error)
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
    status = status_of(error)
    return f"{status} {text[:120]}" if status else text[:120] or type(error).__name__

"""The published bundle of CORE: downloaded once, checked file by file, there whole or not at all.

    $GAIA_HOME/core/eval_data/…        task files, put there by one rename
    $GAIA_HOME/.core.zip.part          bytes that came before a connection broke, for the next

A broken answer goes on where it broke; 429 and 5xx are waited out. Bytes that turn out to be
damaged are thrown away, and fetched once more if a part of them came from an earlier attempt.
"""

import hashlib
import io
import os
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import httpx2
from tqdm import tqdm

from gaia import storage
from gaia.errors import DataError
from gaia.writer_lock import FolderInUse, WriterLock
from gchat.data.progress import progress_bar
from gchat.evals.core.tasks import TASKS, Task

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
"""nanochat's bundle, 161 MB as it unpacks; its task files are checked by their git hashes."""
TRIES = 5
WAIT_S = 1.0  # before the second attempt; doubles for each further one
_TIMEOUT = httpx2.Timeout(60.0, connect=20.0)
_BY_HAND = "unpack eval_bundle.zip yourself and give its folder as --bundle"
# What zipfile raises for archives that are torn, damaged, encrypted or packed in other ways.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class _AgainError(Exception):
    """An answer after which another attempt makes sense."""


def git_blob(data: bytes) -> str:
    """SHA-1 of a file as git names it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def published() -> Path:
    """The folder of the published bundle below $GAIA_HOME, downloaded if it is not there yet.

    Raises:
        DataError: the server does not answer, or holds something else than was published.
        StorageError: the disk is full or may not be written.
    """
    folder = storage.home() / "core"
    waiting = False
    while not (folder / "eval_data").is_dir():
        try:
            with WriterLock(folder.with_name(".core.lock"), "the CORE bundle"):
                if not (folder / "eval_data").is_dir():
                    _download(folder)
        except OSError as error:
            raise storage.StorageError(
                f"{str(folder)!r} cannot be written ({error.strerror or error})",
                "make room on the disk and run it again: it goes on with what came",
            ) from None
        except FolderInUse:
            if not waiting:
                print("another process downloads the CORE bundle: waiting", file=sys.stderr)
            waiting = True
            time.sleep(0.5)
    return folder


def _download(folder: Path) -> None:
    part = folder.with_name(".core.zip.part")
    while True:
        resumed = part.exists()
        _fetch(part)
        try:
            _unpack(part.read_bytes(), folder, TASKS)
        except DataError:
            part.unlink()
            if not resumed:
                raise
            continue  # the earlier part may be of another file, or damaged
        part.unlink()
        return


def _fetch(part: Path) -> None:
    """Completes `part`. Attempts that got further than the ones before do not count."""
    print(f"downloading the CORE bundle from {URL}", file=sys.stderr, flush=True)
    storage.make_folder(part.parent)
    tries, furthest = 0, _size(part)
    with (
        httpx2.Client(
            follow_redirects=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
        ) as client,
        progress_bar("eval_bundle.zip", None) as bar,
    ):
        while True:
            try:
                return _attempt(client, part, bar)
            except (_AgainError, httpx2.TransportError) as error:
                problem = str(error) or type(error).__name__
            except httpx2.HTTPError as error:
                raise _unavailable(str(error)) from None
            tries = 1 if _size(part) > furthest else tries + 1
            furthest = max(furthest, _size(part))
            if tries >= TRIES:
                raise _unavailable(f"{problem}, {tries} times")
            time.sleep(WAIT_S * 2 ** (tries - 1))


def _attempt(client: httpx2.Client, part: Path, bar: tqdm) -> None:
    size = _size(part)
    headers = {"Range": f"bytes={size}-"} if size else {}
    with client.stream("GET", URL, headers=headers) as answer:
        status = answer.status_code
        if status == 416 and size:  # nothing is missing: the check of the files tells
            return
        if status == 429 or status >= 500:
            raise _AgainError(f"the server answered {status}")
        if status not in (200, 206):
            raise _unavailable(f"the server answered {status}")
        if status == 206 and not answer.headers.get("Content-Range", "").startswith(
            f"bytes {size}-"
        ):
            raise _unavailable("the server sent another range than it was asked for")
        bar.reset(int(answer.headers.get("Content-Length", 0)) + (size if status == 206 else 0))
        bar.update(size if status == 206 else 0)
        with open(part, "ab") as out:
            if status == 200:  # all of it, whatever came before
                out.truncate(0)
            for block in answer.iter_raw():
                out.write(block)
                bar.update(len(block))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _unavailable(problem: str) -> DataError:
    return DataError(
        f"the CORE bundle could not be downloaded from {URL} ({problem})",
        f"run it again to go on with what came, or {_BY_HAND}",
    )


def _unpack(data: bytes, folder: Path, tasks: Sequence[Task]) -> None:
    """Makes `folder` of the task files of the zip, each of which must be the published one."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".core-") as scratch:
        unpacked = Path(scratch) / "core"
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = {name.partition("eval_data/")[2]: name for name in archive.namelist()}
                for path, wanted in {f"{t.file}.jsonl": t.git_blob for t in tasks}.items():
                    content = archive.read(names[path]) if path in names else None
                    _check(path, content, wanted)
                    storage.write_bytes(unpacked / "eval_data" / path, content or b"")
        except _BAD_ZIP as error:
            raise DataError(
                f"{URL} sent no whole zip file ({error})", f"run it again, or {_BY_HAND}"
            ) from None
        if folder.is_dir():  # empty, or it is no folder of ours
            folder.rmdir()
        os.rename(unpacked, folder)


def _check(path: str, content: bytes | None, wanted: str) -> None:
    if content is None:
        raise DataError(f"{URL} holds no eval_data/{path}", _BY_HAND)
    if (blob := git_blob(content)) != wanted:
        raise DataError(
            f"{URL} holds another eval_data/{path} than the published one "
            f"(git hash {blob[:12]}, not {wanted[:12]})",
            f"run it again, or {_BY_HAND}",
        )

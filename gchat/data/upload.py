"""A prepared data set to a bucket: parallel, resumable, and never over somebody else's object.

What is there already is told by its crc32c and skipped, so that an interrupted upload goes on
where it stopped. Every object is written under a generation precondition: it appears only if the
bucket still is as it was when it was looked at. manifest.json comes last, as when preparing.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gaia import storage
from gaia.data.lengths import LENGTHS
from gaia.data.manifest import MANIFEST, Manifest, load_manifest
from gaia.errors import ConfigError, DataError
from gaia.storage import gcs, region
from gchat.data.own_tokenizer import check_tokenizer

# Standard storage in US regions such as us-central1, and class A operations (inserts, listings):
# cloud.google.com/storage/pricing, read 2026-11. Other places cost up to half more.
USD_PER_GB_MONTH = 0.020
USD_PER_CLASS_A = 0.005 / 1000
_LISTED_AT_ONCE = 1000
_CHUNK = 32 << 20  # of a resumable upload: what a broken connection repeats at most
_BESIDE = ("tokenizer.json", "token_bytes.npy", LENGTHS)


@dataclass(frozen=True)
class Uploaded:
    """Figures of an upload."""

    uri: str
    objects: int
    """In the data set."""
    uploaded: int
    uploaded_bytes: int
    present: int
    """Objects that were there already, with the same content."""
    total_bytes: int
    operations: int
    """Class A operations: one for each object written and each page listed."""
    usd: float
    """For those operations."""
    usd_per_month: float
    """For keeping the data set."""
    warning: str | None
    """Text of a warning that bucket and machines are not in one region; None where they are."""

    def sentence(self) -> str:
        """For people."""
        return (
            f"{self.uri}: uploaded {self.uploaded} of {self.objects} objects, "
            f"{self.uploaded_bytes:,} bytes ({self.present} were there already); "
            f"{self.operations} class A operations ${self.usd:.6f}, keeping "
            f"{self.total_bytes / 1e9:,.3f} GB ${self.usd_per_month:,.4f} a month at "
            f"${USD_PER_GB_MONTH}/GB"
        )


def upload(
    folder: str | Path,
    uri: str,
    *,
    force: bool = False,
    threads: int = 8,
    zone: str | None = None,
    progress: bool | None = None,
) -> Uploaded:
    """Uploads a data set.

    Args:
        folder: a prepared data set.
        uri: gs://bucket/prefix.
        force: replace objects of other content.
        threads: objects sent at a time.
        zone: where the data will be read; None for the zone of this machine, if it has one.
        progress: show a bar; None shows it on a terminal.

    Raises:
        ConfigError: `uri` is no gs:// address.
        DataError: the data set is damaged, or other objects lie there and `force` is false. Nothing
            has been uploaded then.
        StorageError: the bucket is missing, not allowed or silent; run it again to go on.
    """
    if not storage.is_remote(uri):
        raise ConfigError(f"{uri!r} is no bucket", "use gs://bucket/prefix")
    if threads < 1:
        raise ConfigError(f"threads is {threads}", "use 1 or more")
    folder = Path(folder)
    files = _local_files(folder, load_manifest(folder))
    warning = _region_warning(uri, zone)
    there = gcs.list_objects(uri)
    todo = {name: crc for name, crc in files.items() if not _same(there.get(name), crc)}
    if (others := sorted(todo.keys() & there.keys())) and not force:
        raise DataError(
            f"{uri} holds other objects of the same name: {', '.join(others[:3])}"
            + f" and {len(others) - 3} more" * (len(others) > 3),
            "choose another prefix, or replace them with --force",
        )
    sizes = {name: (folder / name).stat().st_size for name in files}
    _send(folder, uri, there, files, todo, sizes, threads, force, progress)
    operations = len(todo) + 1 + len(there) // _LISTED_AT_ONCE
    total = sum(sizes.values())
    return Uploaded(
        uri=uri,
        objects=len(files),
        uploaded=len(todo),
        uploaded_bytes=sum(sizes[name] for name in todo),
        present=len(files) - len(todo),
        total_bytes=total,
        operations=operations,
        usd=operations * USD_PER_CLASS_A,
        usd_per_month=total / 1e9 * USD_PER_GB_MONTH,
        warning=warning,
    )


def _send(
    folder: Path,
    uri: str,
    there: dict[str, gcs.Object],
    files: dict[str, str],
    todo: dict[str, str],
    sizes: dict[str, int],
    threads: int,
    force: bool,
    progress: bool | None,
) -> None:
    """Sends the files of `todo`, manifest.json last; adds it where the old one was withdrawn."""
    with tqdm(
        desc="upload",
        total=sum(sizes[name] for name in todo),
        unit="B",
        unit_scale=True,
        disable=None if progress is None else not progress,
    ) as bar:
        sender = _Sender(folder, uri, there, bar)
        shards = [name for name in todo if name != MANIFEST]
        if MANIFEST in there and todo and force:
            # The old manifest must not describe a mixture of old and new shards meanwhile.
            sender.withdraw_manifest()
            todo[MANIFEST] = files[MANIFEST]
        sender.send_all({name: todo[name] for name in shards}, threads)
        if MANIFEST in todo:
            sender.send(MANIFEST, todo[MANIFEST])


def _local_files(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Name -> crc32c of every file of the data set, the shards compared with their manifest."""
    files = {}
    for shard in manifest.train + manifest.val:
        path = folder / shard.name
        if not path.is_file():
            raise DataError(f"shard {path} does not exist", "prepare the data again")
        if (crc := storage.crc32c_file(path)) != shard.crc32c:
            raise DataError(
                f"shard {path}: crc32c {crc}, manifest says {shard.crc32c}",
                "prepare the data again",
            )
        files[shard.name] = crc
    check_tokenizer(str(folder), manifest)
    for name in (*_BESIDE, MANIFEST):
        if (folder / name).is_file():
            files[name] = storage.crc32c_file(folder / name)
    return files


def _same(there: gcs.Object | None, crc: str) -> bool:
    return there is not None and there.crc32c == crc


def _region_warning(uri: str, zone: str | None) -> str | None:
    """Asked before anything is sent: a missing bucket is found here, too."""
    try:
        location = gcs.bucket_location(uri)
    except gcs.StorageError as error:
        if "storage.buckets.get" not in error.problem:
            raise
        return f"cannot tell where the bucket lies: {error}"  # writing may be allowed all the same
    zone = zone or region.this_zone()
    return region.differs(location, zone, uri) if zone else None


class _Sender:
    """Sends files, each under the precondition that its object is still as it was listed."""

    def __init__(self, folder: Path, uri: str, there: dict[str, gcs.Object], bar: tqdm) -> None:
        self._folder, self._uri, self._there, self._bar = folder, uri, dict(there), bar
        self._stop = threading.Event()
        self._patience = gcs.Patience(stop=self._stop)

    def send_all(self, files: dict[str, str], threads: int) -> None:
        """Several at a time; the first error ends the others."""
        with ThreadPoolExecutor(threads, thread_name_prefix="gchat-upload") as pool:
            sent = [pool.submit(self.send, name, crc) for name, crc in files.items()]
            try:
                for future in sent:
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def send(self, name: str, crc: str) -> None:
        """One file, in chunks that are repeated alone where the connection breaks."""
        where, path = storage.join(self._uri, name), self._folder / name
        before = self._there.get(name)
        expected = before.generation if before else 0

        def once() -> None:
            try:
                target = gcs.blob(where)
                target.chunk_size = _CHUNK
                target.upload_from_filename(
                    str(path),
                    content_type="application/octet-stream",
                    if_generation_match=expected,
                    checksum="crc32c",
                    timeout=gcs.TIMEOUT_S,
                    retry=lambda call: lambda: self._repeated(call, where),
                )
            except Exception as error:
                # An answer that was lost on its way: the object may be there after all.
                if getattr(error, "code", None) == 412 and _same(gcs.stat(where), crc):
                    return
                raise

        gcs.attempt(once, where, self._patience)
        self._bar.update(path.stat().st_size)

    def _repeated(self, call: Callable[[], Any], where: str) -> Any:
        """One request of an upload, in place of the client's own retry.

        That one ends after 120 s with an exception of its own and hears no stop. None at all would
        send the whole file again for one broken chunk, and count the patience from its beginning.
        """
        failed: list[Exception] = []

        def once() -> Any:
            try:
                return call()
            except Exception as error:
                if gcs.is_transient(error):
                    raise
                failed.append(error)  # the client cleans up after some, so it must see them as is
                return None

        answer = gcs.attempt(once, where, self._patience)
        if failed:
            raise failed[0]
        return answer

    def withdraw_manifest(self) -> None:
        """Deletes the old manifest.json, if it is still the one that was listed."""
        where = storage.join(self._uri, MANIFEST)
        known = self._there.pop(MANIFEST)
        gcs.delete(where, known.generation, self._patience)

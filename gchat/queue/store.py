"""Objects by the ids of items, written once: in a local folder, on gs:// or on s3://.

A result is written before its item is ended, under a name that its id decides, and only where there
is none: whoever writes a second time changes nothing. So results outlive the queue and its server.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

from gaia import storage
from gaia.errors import ConfigError
from gaia.storage import gcs
from gchat.queue.base import driver, to_json
from gchat.queue.protocol import QueueError

_LONGEST_NAME = 150
_CONFLICT_PAUSE_S, _CONFLICT_S = 0.2, 30.0


class Store(Protocol):
    """Objects of several kinds ("results", "dead", …), each under the id of an item."""

    url: str

    def put(self, kind: str, id: str, value: dict[str, Any]) -> bool:
        """Writes an object where there is none; False where there is one, which stays."""
        ...

    def replace(self, kind: str, id: str, value: dict[str, Any]) -> None:
        """Writes an object, also in place of another."""
        ...

    def get(self, kind: str, id: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        ...

    def delete(self, kind: str, id: str) -> None:
        """Removes an object, if it is there."""
        ...

    def ids(self, kind: str) -> Iterator[str]:
        """Ids of all objects of a kind, in no order."""
        ...


def open_store(url: str) -> Store:
    """The store at a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX.

    Raises:
        ConfigError: no such address.
    """
    if url.startswith("s3://"):
        return S3Store(url)
    if url.startswith("gs://"):
        return GcsStore(url)
    if "://" in url:
        raise ConfigError(f"results {url!r}", "give a folder, gs://BUCKET/PREFIX or s3://…")
    return FolderStore(Path(url).expanduser())


def name_of(id: str) -> str:
    """The place of an id below its kind; folders keep listings of local disks short."""
    digest = hashlib.sha256(id.encode()).hexdigest()
    name = quote(id, safe="")
    if len(name) > _LONGEST_NAME:
        name = f"~{digest}"
    return f"{digest[:2]}/{name}.json"


def _id_of(name: str) -> str | None:
    """The id behind a name; None where the name holds a digest only."""
    text = name.rsplit("/", 1)[-1].removesuffix(".json")
    return None if text.startswith("~") else unquote(text)


def _packed(id: str, value: dict[str, Any]) -> bytes:
    return to_json({"id": id, "value": value}).encode()


class FolderStore:
    """Objects as files, synced to the disk before they have their names."""

    def __init__(self, folder: Path) -> None:
        self.url, self._folder = str(folder), folder

    def put(self, kind: str, id: str, value: dict[str, Any]) -> bool:
        """Writes an object where there is none."""
        target = self._folder / kind / name_of(id)
        storage.make_folder(target.parent)
        torn = target.with_name(f".{os.getpid()}.{secrets.token_hex(8)}.tmp")
        try:
            with open(torn, "wb") as file:
                file.write(_packed(id, value))
                file.flush()
                os.fsync(file.fileno())
            os.link(torn, target)  # unlike a rename it never replaces
        except FileExistsError:
            return False
        except OSError as error:
            raise QueueError(
                f"cannot write {str(target)!r} ({error.strerror})", "make room, or mend the folder"
            ) from None
        finally:
            torn.unlink(missing_ok=True)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return True

    def replace(self, kind: str, id: str, value: dict[str, Any]) -> None:
        """Writes an object, also in place of another."""
        storage.write_bytes(self._folder / kind / name_of(id), _packed(id, value))

    def get(self, kind: str, id: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        try:
            return json.loads((self._folder / kind / name_of(id)).read_bytes())["value"]
        except FileNotFoundError:
            return None

    def delete(self, kind: str, id: str) -> None:
        """Removes an object, if it is there."""
        (self._folder / kind / name_of(id)).unlink(missing_ok=True)

    def ids(self, kind: str) -> Iterator[str]:
        """Ids of all objects of a kind."""
        for path in (self._folder / kind).glob("??/*.json"):
            id = _id_of(path.name)
            yield json.loads(path.read_bytes())["id"] if id is None else id


class GcsStore:
    """Objects in Google Cloud Storage, written with `if-generation-match: 0`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        gcs.split(self.url)

    def put(self, kind: str, id: str, value: dict[str, Any]) -> bool:
        """Writes an object where there is none."""
        try:
            gcs.write(self._uri(kind, id), _packed(id, value), generation=0)
        except gcs.ChangedObject:
            return False
        return True

    def replace(self, kind: str, id: str, value: dict[str, Any]) -> None:
        """Writes an object, also in place of another."""
        gcs.write(self._uri(kind, id), _packed(id, value))

    def get(self, kind: str, id: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        try:
            return json.loads(gcs.read(self._uri(kind, id)))["value"]
        except gcs.MissingObject:
            return None

    def delete(self, kind: str, id: str) -> None:
        """Removes an object, if it is there."""
        try:
            gcs.delete(self._uri(kind, id))
        except gcs.MissingObject:
            return

    def ids(self, kind: str) -> Iterator[str]:
        """Ids of all objects of a kind."""
        for name in gcs.list_objects(f"{self.url}/{kind}"):
            id = _id_of(name)
            yield json.loads(gcs.read(f"{self.url}/{kind}/{name}"))["id"] if id is None else id

    def _uri(self, kind: str, id: str) -> str:
        return f"{self.url}/{kind}/{name_of(id)}"


class S3Store:
    """Objects in Amazon S3, written with `If-None-Match: *`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._bucket, _, self._prefix = self.url.removeprefix("s3://").partition("/")
        self._prefix = f"{self._prefix}/" if self._prefix else ""
        boto3, core = driver("boto3", "s3"), driver("botocore.exceptions", "s3")
        config = driver("botocore.config", "s3").Config(
            retries={"max_attempts": 8, "mode": "standard"}, max_pool_connections=64
        )
        self._client = boto3.client("s3", config=config)
        self._refused, self._errors = core.ClientError, (core.BotoCoreError, core.ClientError)

    def put(self, kind: str, id: str, value: dict[str, Any]) -> bool:
        """Writes an object where there is none."""
        until = time.monotonic() + _CONFLICT_S
        while True:
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._key(kind, id), Body=_packed(id, value),
                    IfNoneMatch="*",
                )  # fmt: skip
                return True
            except self._errors as error:
                if _code(error) == "PreconditionFailed":  # 412: it is there
                    return False
                # 409: another writer is at it, who may fail yet: nothing would be there then.
                conflict = _code(error) == "ConditionalRequestConflict"
                if not conflict or time.monotonic() > until:
                    raise self._explained(error) from None
            time.sleep(_CONFLICT_PAUSE_S)

    def replace(self, kind: str, id: str, value: dict[str, Any]) -> None:
        """Writes an object, also in place of another."""
        try:
            key = self._key(kind, id)
            self._client.put_object(Bucket=self._bucket, Key=key, Body=_packed(id, value))
        except self._errors as error:
            raise self._explained(error) from None

    def get(self, kind: str, id: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        return self._read(self._key(kind, id), "value")

    def _read(self, key: str, field: str) -> Any:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
            return json.loads(answer["Body"].read())[field]
        except self._errors as error:
            if _code(error) == "NoSuchKey":
                return None
            raise self._explained(error) from None

    def delete(self, kind: str, id: str) -> None:
        """Removes an object, if it is there."""
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._key(kind, id))
        except self._errors as error:
            raise self._explained(error) from None

    def ids(self, kind: str) -> Iterator[str]:
        """Ids of all objects of a kind."""
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}{kind}/"
            )
            for page in pages:
                for one in page.get("Contents", ()):
                    id = _id_of(one["Key"])
                    yield self._read(one["Key"], "id") if id is None else id
        except self._errors as error:
            raise self._explained(error) from None

    def _key(self, kind: str, id: str) -> str:
        return f"{self._prefix}{kind}/{name_of(id)}"

    def _explained(self, error: Exception) -> QueueError:
        return QueueError(f"{self.url}: {error}", "check the bucket, its region and your access")


def _code(error: Any) -> str:
    return getattr(error, "response", {}).get("Error", {}).get("Code", "")

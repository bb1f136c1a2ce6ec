"""Small JSON documents that several machines share: in a bucket, or in a folder for one machine.

Each document has a generation. A write names the generation that it replaces, so of two writers
one is refused instead of undoing the other's change without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from gml.config import Config
from gml.errors import Busy, UsageError
from gml.http import ApiError
from gml.model import ApiRequest
from gml.providers.google.api import GoogleApi
from gml.providers.google.buckets import check_bucket
from gml.providers.google.failures import translate
from gml.store import write_private

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}(?:/[a-z0-9_][a-z0-9_.-]{0,99}){0,3}")
NEW = 0  # generation of a document that must not exist yet


class Conflict(Busy):
    """The document is not the one that the writer had read."""


class Documents(Protocol):
    """Documents by name (`queues/exp1`); `where` tells people and other machines the place."""

    where: str

    def names(self, folder: str) -> list[str]:
        """Names of the documents below a folder, sorted."""
        ...

    def read(self, name: str) -> tuple[dict[str, Any], int] | None:
        """Value and generation, or None where there is none."""
        ...

    def write(self, name: str, value: dict[str, Any], generation: int) -> int:
        """Replaces that generation (NEW: there must be none); the new generation, or Conflict."""
        ...

    def delete(self, name: str, generation: int) -> None:
        """Deletes that generation; raises Conflict. One that is gone already is no error."""
        ...


def open_documents(config: Config) -> Documents:
    """The documents of this owner: where `[supervisor] state` says, else the bucket, else here.

    Raises:
        UsageError: the state is neither gs://… nor an absolute folder.
    """
    state = config.supervisor.state
    if not state and config.google.bucket:
        state = f"gs://{config.google.bucket}/gml"
    if not state:
        return FolderDocuments(config.home / "shared" / config.owner)
    if state.startswith("gs://"):
        bucket, _, prefix = state[5:].rstrip("/").partition("/")
        check_bucket(bucket)
        return BucketDocuments(GoogleApi(config), bucket, f"{prefix}/{config.owner}".lstrip("/"))
    folder = Path(state).expanduser()
    if not folder.is_absolute():
        raise UsageError(
            f"supervisor.state {state!r} is neither gs://BUCKET/PATH nor an absolute folder",
            "write one of them",
        )
    return FolderDocuments(folder / config.owner)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"document name {name[:80]!r} is not usable", "use a-z, 0-9, - and _")
    return name


class FolderDocuments:
    """Documents as 0600 files; a lock file orders the writers of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def names(self, folder: str) -> list[str]:
        """Names below a folder."""
        base = self.folder / _checked(folder)
        files = (p for p in base.rglob("*.json") if not p.name.startswith("."))
        return sorted(str(p.relative_to(self.folder)).removesuffix(".json") for p in files)

    def read(self, name: str) -> tuple[dict[str, Any], int] | None:
        """Value and generation; raises UsageError for a damaged file."""
        path = self._path(name)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return raw["value"], int(raw["generation"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path} is damaged", "mend or remove it") from None

    def write(self, name: str, value: dict[str, Any], generation: int) -> int:
        """Replaces a generation."""
        with self._locked():
            self._expect(name, generation)
            # Time never repeats: a document that was deleted and made again is another one.
            fresh = max(time.time_ns(), generation + 1)
            text = json.dumps({"generation": fresh, "value": value}, sort_keys=True)
            write_private(self._path(name), text + "\n")
            return fresh

    def delete(self, name: str, generation: int) -> None:
        """Deletes a generation."""
        with self._locked():
            if self.read(name) is not None:
                self._expect(name, generation)
                self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{_checked(name)}.json"

    def _expect(self, name: str, generation: int) -> None:
        there = self.read(name)
        if (there[1] if there else NEW) != generation:
            raise Conflict(f"{name} was changed by somebody else", "run it again")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


class BucketDocuments:
    """Documents as objects of a bucket, with Cloud Storage's own generations."""

    def __init__(self, api: GoogleApi, bucket: str, prefix: str) -> None:
        self.api, self.bucket, self.prefix = api, bucket, prefix
        self.where = f"gs://{bucket}/{prefix}"

    def names(self, folder: str) -> list[str]:
        """Names below a folder."""
        start = f"{self.prefix}/{_checked(folder)}/"
        pages = self.api.pages("storage", f"storage/v1/b/{self.bucket}/o", {"prefix": start})
        names = [item["name"] for page in pages for item in page.get("items", [])]
        return sorted(n.removeprefix(f"{self.prefix}/").removesuffix(".json") for n in names)

    def read(self, name: str) -> tuple[dict[str, Any], int] | None:
        """Value and generation, of one moment; raises UsageError for a damaged object."""
        there = self._read(name)
        if there is None:
            return None
        if not isinstance(there[0].get("value"), dict):
            raise UsageError(f"{self.where}/{name}.json is damaged", "mend or remove it")
        return there[0]["value"], there[1]

    def _read(self, name: str) -> tuple[dict[str, Any], int] | None:
        path = self._path(name)
        while True:
            about = self.api.get("storage", path)
            if about is None:
                return None
            generation = about["generation"]
            query = {"alt": "media", "generation": generation}
            value = self.api.get("storage", path, query)
            if value is not None:  # else replaced between the two calls
                return value, int(generation)

    def write(self, name: str, value: dict[str, Any], generation: int) -> int:
        """Replaces a generation."""
        params = {
            "uploadType": "media",
            "name": f"{self.prefix}/{_checked(name)}.json",
            "ifGenerationMatch": str(generation),
        }
        path = f"upload/storage/v1/b/{self.bucket}/o"
        # Others may write the very same value: the mark tells whose it is.
        body = {"mark": secrets.token_hex(8), "value": value}
        try:
            answer = self.api.send(ApiRequest("storage", "POST", path, params, body))
            return int(answer["generation"])
        except ApiError as error:
            if error.status != 412:
                raise translate(error, self.api.config) from None
        # A try whose answer got lost may have written it: then what is there is ours.
        there = self._read(name)
        if there is None or there[0].get("mark") != body["mark"]:
            raise Conflict(f"{name} was changed by somebody else", "run it again") from None
        return there[1]

    def delete(self, name: str, generation: int) -> None:
        """Deletes a generation."""
        query = {"ifGenerationMatch": str(generation)}
        try:
            self.api.send(ApiRequest("storage", "DELETE", self._path(name), query))
        except ApiError as error:
            if error.status == 412:
                raise Conflict(f"{name} was changed by somebody else", "run it again") from None
            if error.status != 404:
                raise translate(error, self.api.config) from None

    def _path(self, name: str) -> str:
        quoted = urllib.parse.quote(f"{self.prefix}/{_checked(name)}.json", safe="")
        return f"storage/v1/b/{self.bucket}/o/{quoted}"

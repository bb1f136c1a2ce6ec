"""Content of a fake Google Cloud Storage: buckets, objects, generations, and their conditions.

Written from the JSON API reference (Objects, Buckets): generations and metagenerations, the four
`if…Match` conditions, listing with prefix, delimiter, offsets and pages, compose and rewrite.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote

import google_crc32c


class ApiError(Exception):
    """An answer other than success; `reason` is the API's short name for it."""

    def __init__(self, code: int, message: str, reason: str) -> None:
        super().__init__(message)
        self.code, self.message, self.reason = code, message, reason

    def body(self) -> dict[str, Any]:
        detail = {"message": self.message, "domain": "global", "reason": self.reason}
        return {"error": {"code": self.code, "message": self.message, "errors": [detail]}}


def no_bucket() -> ApiError:
    return ApiError(404, "The specified bucket does not exist.", "notFound")


def no_object(bucket: str, name: str) -> ApiError:
    return ApiError(404, f"No such object: {bucket}/{name}", "notFound")


@dataclass(frozen=True)
class Blob:
    """One object at one generation."""

    bucket: str
    name: str
    data: bytes
    generation: int
    metageneration: int = 1
    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @cached_property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    @cached_property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    def resource(self, base_url: str) -> dict[str, Any]:
        """The `storage#object` of the JSON API."""
        path = f"/storage/v1/b/{self.bucket}/o/{quote(self.name, safe='')}"
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": self.content_type,
            "size": str(len(self.data)),
            "md5Hash": self.md5,
            "crc32c": self.crc32c,
            "etag": f"{self.generation}/{self.metageneration}",
            "timeCreated": self.created,
            "updated": self.created,
            "timeFinalized": self.created,
            "storageClass": "STANDARD",
            "metadata": dict(self.metadata),
            "selfLink": base_url + path,
            "mediaLink": f"{base_url}/download{path}?alt=media&generation={self.generation}",
        }


class Store:
    """All buckets. Thread-safe; every change makes a new generation."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, Blob]] = {}
        self._locations: dict[str, str] = {}
        self._generations = itertools.count(int(time.time() * 1e6))
        self._lock = threading.RLock()

    # ── Buckets ───────────────────────────────────────────────────────────────────────────────

    def create_bucket(self, name: str, location: str = "US-CENTRAL1") -> dict[str, Any]:
        with self._lock:
            if name in self._buckets:
                raise ApiError(409, "Your previous request to create the bucket exists", "conflict")
            self._buckets[name] = {}
            self._locations[name] = location.upper()
            return self.bucket(name)

    def delete_bucket(self, name: str) -> None:
        with self._lock:
            self.bucket(name)
            del self._buckets[name]

    def bucket(self, name: str) -> dict[str, Any]:
        """The `storage#bucket`."""
        if name not in self._buckets:
            raise no_bucket()
        location = self._locations[name]
        return {
            "kind": "storage#bucket",
            "id": name,
            "name": name,
            "location": location,
            "locationType": "region" if "-" in location else "multi-region",
            "storageClass": "STANDARD",
            "metageneration": "1",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def bucket_names(self) -> list[str]:
        return sorted(self._buckets)

    # ── Objects ───────────────────────────────────────────────────────────────────────────────

    def put(
        self,
        bucket: str,
        name: str,
        data: bytes,
        conditions: Mapping[str, str],
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Blob:
        with self._lock:
            if bucket not in self._buckets:
                raise no_bucket()
            self._check(bucket, name, conditions, reading=False)
            blob = Blob(
                bucket,
                name,
                bytes(data),
                next(self._generations),
                content_type=content_type or "application/octet-stream",
                metadata=metadata or {},
                created=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
            )
            self._buckets[bucket][name] = blob
            return blob

    def get(self, bucket: str, name: str, conditions: Mapping[str, str] | None = None) -> Blob:
        with self._lock:
            conditions = conditions or {}
            if bucket not in self._buckets:
                raise no_bucket()
            blob = self._buckets[bucket].get(name)
            wanted = conditions.get("generation")
            if blob is None or (wanted is not None and int(wanted) != blob.generation):
                raise no_object(bucket, name)
            self._check(bucket, name, conditions, reading=True)
            return blob

    def delete(self, bucket: str, name: str, conditions: Mapping[str, str]) -> None:
        with self._lock:
            self.get(bucket, name)
            self._check(bucket, name, conditions, reading=False)
            del self._buckets[bucket][name]

    def patch(self, bucket: str, name: str, change: Mapping[str, Any]) -> Blob:
        with self._lock:
            blob = self.get(bucket, name)
            blob = replace(
                blob,
                metageneration=blob.metageneration + 1,
                content_type=change.get("contentType", blob.content_type),
                metadata={**blob.metadata, **(change.get("metadata") or {})},
            )
            self._buckets[bucket][name] = blob
            return blob

    def compose(
        self, bucket: str, name: str, sources: list[str], conditions: Mapping[str, str]
    ) -> Blob:
        with self._lock:
            parts = [self.get(bucket, source) for source in sources]
            kind = parts[0].content_type if parts else None
            return self.put(bucket, name, b"".join(p.data for p in parts), conditions, kind)

    def copy(self, source: Blob, bucket: str, name: str, conditions: Mapping[str, str]) -> Blob:
        return self.put(bucket, name, source.data, conditions, source.content_type, source.metadata)

    def list(self, bucket: str, query: Mapping[str, str], base_url: str) -> dict[str, Any]:
        """One page of `storage#objects`."""
        with self._lock:
            if bucket not in self._buckets:
                raise no_bucket()
            names = sorted(self._buckets[bucket])
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, end = query.get("startOffset", ""), query.get("endOffset")
        most = int(query.get("maxResults", 1000))
        after = base64.b64decode(query["pageToken"]).decode() if query.get("pageToken") else ""
        entries: list[tuple[str, bool]] = []
        for name in names:
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folder = prefix + rest.split(delimiter)[0] + delimiter
                if not entries or entries[-1] != (folder, True):
                    entries.append((folder, True))
            else:
                entries.append((name, False))
        entries = [entry for entry in entries if entry[0] > after]
        page = entries[:most]
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "prefixes": [name for name, is_folder in page if is_folder],
            "items": [
                self.get(bucket, name).resource(base_url)
                for name, is_folder in page
                if not is_folder
            ],
        }
        if len(entries) > most:
            answer["nextPageToken"] = base64.b64encode(page[-1][0].encode()).decode()
        return answer

    def _check(
        self, bucket: str, name: str, conditions: Mapping[str, str], *, reading: bool
    ) -> None:
        blob = self._buckets[bucket].get(name)
        facts = {
            "Generation": blob.generation if blob else 0,
            "Metageneration": blob.metageneration if blob else 0,
        }
        for fact, value in facts.items():
            same = conditions.get(f"if{fact}Match")
            if same is not None and int(same) != value:
                raise ApiError(
                    412, "At least one of the pre-conditions you specified did not hold.",
                    "conditionNotMet",
                )  # fmt: skip
            other = conditions.get(f"if{fact}NotMatch")
            if other is not None and int(other) == value:
                raise ApiError(304 if reading else 412, "unchanged", "conditionNotMet")


def multipart(kind: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the data of a multipart/related upload."""
    match = re.search(r"""boundary=["']?([^"';]+)["']?""", kind)
    assert match is not None
    mark = b"--" + match[1].encode()
    _, first, rest = body.split(mark, 2)
    data = rest[: rest.rfind(mark)]
    line = b"\r\n" if b"\r\n\r\n" in first else b"\n"
    wanted = json.loads(first.split(line * 2, 1)[1])
    return wanted, data.split(line * 2, 1)[1].removesuffix(line)

"""Cloud Storage buckets: their location, and small JSON objects in them."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

from gml.errors import UsageError
from gml.http import ApiError
from gml.model import ApiRequest
from gml.providers.google.api import GoogleApi
from gml.providers.google.failures import translate


def check_bucket(name: str) -> None:
    """Raises UsageError for what can't be a bucket's name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name):
        raise UsageError(f"{name[:80]!r} is not a bucket name", "write gs://BUCKET/PATH")


def bucket_location(api: GoogleApi, bucket: str) -> str:
    """A bucket's location in lower case (`us-east5`, `us`); raises UsageError when unknown."""
    check_bucket(bucket)
    raw = api.get("storage", f"storage/v1/b/{bucket}")
    if raw is None:
        raise UsageError(f"bucket gs://{bucket} does not exist", "check the name")
    return str(raw.get("location", "")).lower()


def upload(api: GoogleApi, bucket: str, name: str, value: dict[str, Any]) -> None:
    """Writes a small JSON object."""
    check_bucket(bucket)
    request = ApiRequest(
        "storage",
        "POST",
        f"upload/storage/v1/b/{bucket}/o",
        {"uploadType": "media", "name": name},
        value,
    )
    try:
        api.send(request)
    except ApiError as error:
        raise translate(error, api.config) from None


def download(api: GoogleApi, bucket: str, name: str) -> dict[str, Any]:
    """Reads a small JSON object; {} where there is none."""
    check_bucket(bucket)
    # The object's name is one path segment: its slashes stay escaped.
    quoted = urllib.parse.quote(name, safe="")
    return api.get("storage", f"storage/v1/b/{bucket}/o/{quoted}", {"alt": "media"}) or {}

"""Names of branches, ideas and cells as names of folders."""

import hashlib
from urllib.parse import quote

MOST = 150
"""Bytes of a name: file systems allow 255, and files beside a folder are named after it."""


def folder_name(name: str) -> str:
    """A name as that of a folder; no two names share one, and none is too long."""
    quoted = quote(name, safe="+@ ")
    if len(quoted) <= MOST:
        return quoted
    return f"{quoted[: MOST - 13]}-{hashlib.sha256(quoted.encode()).hexdigest()[:12]}"

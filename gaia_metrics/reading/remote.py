"""Runs in a bucket or on another machine: their small files are mirrored, then read here.

gs://bucket/runs (and any other fsspec address) copies what changed; ssh://host/path runs rsync.
Only run.json, status.json, metrics.jsonl and segments are fetched, never checkpoints.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

from gaia.extras import install
from gaia_metrics.errors import MetricsError
from gaia_metrics.reading.local import LocalSource

REFRESH_S = 5.0
_WANTED = ("run.json", "status.json", "metrics.jsonl")


def cache_folder(address: str) -> Path:
    """Return the folder of an address's mirror: $GAIA_HOME/mirrors/… (default ~/.cache/gaia)."""
    home = Path(os.environ.get("GAIA_HOME") or Path.home() / ".cache" / "gaia")
    return home / "mirrors" / hashlib.sha256(address.encode()).hexdigest()[:16]


class RemoteSource(LocalSource):
    """A mirror that is brought up to date at most every REFRESH_S seconds, when runs are listed."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(cache_folder(address))
        self.root.mkdir(parents=True, exist_ok=True)
        self._fetched = 0.0
        self.refresh()

    def runs(self) -> list[dict]:
        """Summaries, newest first, after a look at the other side."""
        if time.monotonic() - self._fetched > REFRESH_S:
            self.refresh()
        return super().runs()

    def delete(self, run: str) -> str:
        """Refuse: the mirror would fetch it again."""
        raise MetricsError(f"{self.address} is read only", "delete the run where it lies")

    def refresh(self) -> None:
        """Fetch what changed. Raises MetricsError where the other side does not answer."""
        with self._lock:
            if self.address.startswith("ssh://"):
                self._rsync()
            else:
                self._copy()
            self._fetched = time.monotonic()

    def _rsync(self) -> None:
        parts = urlsplit(self.address)
        host, path = parts.hostname or "", parts.path.lstrip("/") or "runs"
        if not host or host.startswith("-"):
            raise MetricsError(f"{self.address!r} names no host", "use ssh://host/path/to/runs")
        if parts.username:
            host = f"{parts.username}@{host}"
        ssh = "ssh -o BatchMode=yes -o ConnectTimeout=10"
        if parts.port:
            ssh += f" -p {parts.port}"
        if parts.path.startswith("//"):
            path = "/" + path  # ssh://host//absolute/path
        command = ["rsync", "--archive", "--compress", "--prune-empty-dirs", "--rsh", ssh]
        command += [f"--include={name}" for name in (*_WANTED, "*.seg", "*/")]
        command += ["--exclude=*", "--", f"{host}:{path}/", f"{self.root}/"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except FileNotFoundError as error:
            raise MetricsError("rsync is not installed", "install rsync, also there") from error
        except subprocess.TimeoutExpired as error:
            raise MetricsError(f"{self.address} takes too long", "try again") from error
        # 23 and 24: a file changed or vanished meanwhile; but 23 also where the folder is missing.
        if done.returncode not in (0, 23, 24) or "change_dir" in done.stderr:
            text = [line for line in done.stderr.strip().splitlines() if "(code 23)" not in line]
            raise MetricsError(
                f"{self.address} cannot be read ({text[-1] if text else done.returncode})",
                "check that `ssh HOST` works without a question",
            )

    def _copy(self) -> None:
        try:
            import fsspec  # pyright: ignore

            files, base = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise MetricsError(
                f"{self.address} needs {error.name}, which is not installed", install("gcs")
            ) from error
        except ValueError as error:
            raise MetricsError(f"{self.address!r}: {error}", "use gs:// or ssh://") from error
        try:
            files.invalidate_cache()
            listing = files.find(base, detail=True)
            for path, detail in listing.items():
                name = path.rsplit("/", 1)[-1]
                if name in _WANTED or name.endswith(".seg"):
                    self._copy_one(files, path, base, detail)
        except Exception as error:  # each cloud's client has its own errors
            raise MetricsError(
                f"{self.address} cannot be read ({type(error).__name__}: {error})",
                "check the address and your credentials",
            ) from error

    def _copy_one(self, files, path: str, base: str, detail: dict) -> None:
        relative = path.removeprefix(base).strip("/")
        target = (self.root / relative).resolve()
        if not target.is_relative_to(self.root.resolve()):
            return
        stamp = str(detail.get("etag") or detail.get("mtime") or detail.get("created"))
        mark = target.with_name(f".{target.name}.stamp")
        state = f"{detail.get('size')} {stamp}"
        if target.exists() and mark.exists() and mark.read_text() == state:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        files.get_file(path, str(temporary))
        os.replace(temporary, target)
        mark.write_text(state)

"""Runs in a bucket or on another machine: their small files are mirrored, then read here.

gs://bucket/runs (and any other fsspec address) copies what changed; ssh://host/path runs rsync.
Only run.json, status.json, metrics.jsonl and segments are fetched, never checkpoints. What is gone
there goes here: a new run in a deleted one's folder would otherwise be shown with its values.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gaia.extras import install
from gaia_metrics.errors import FormatError, MetricsError
from gaia_metrics.reading.local import LocalSource
from gaia_metrics.storage import folder, segments

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
        self.refresh_when_due()
        return super().runs()

    def refresh_when_due(self) -> None:
        """Fetch what changed, unless that was done less than REFRESH_S seconds ago."""
        if time.monotonic() - self._fetched > REFRESH_S:
            self.refresh()

    def delete(self, run: str) -> str:
        """Refuse: the mirror would fetch it again."""
        raise MetricsError(f"{self.address} is read only", "delete the run where it lies")

    def refresh(self) -> None:
        """Fetch what changed. Raises MetricsError where the other side does not answer."""
        with self._lock, _alone_in(self.root):
            compacted = {path: _segments_of(path) for path in self.root.rglob("compact.parquet")}
            try:
                if self.address.startswith("ssh://"):
                    self._rsync()
                else:
                    self._copy()
            finally:  # made here, of segments that may have gone or changed at the same size
                for path, before in compacted.items():
                    if _segments_of(path) != before:
                        path.unlink(missing_ok=True)
            for path in sorted(self.root.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()
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
        command = ["rsync", "--archive", "--compress", "--delete", "--prune-empty-dirs"]
        command += ["--rsh", ssh]
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
            wanted = {}
            for path, detail in files.find(base, detail=True).items():
                target = self.root / path.removeprefix(base).strip("/")
                inside = target.resolve().is_relative_to(self.root.resolve())
                if inside and _is_wanted(target):
                    wanted[target] = (path, detail)
            self._drop_all_but(wanted)
            # A run.json tells that the others are another run's; above it first, as it clears.
            for target in sorted(wanted, key=lambda t: (t.name != "run.json", len(t.parts))):
                _copy_one(files, target, *wanted[target])
        except Exception as error:  # each cloud's client has its own errors
            raise MetricsError(
                f"{self.address} cannot be read ({type(error).__name__}: {error})",
                "check the address and your credentials",
            ) from error

    def _drop_all_but(self, wanted: Container[Path]) -> None:
        """Delete mirrored files that the other side's whole listing does not have."""
        for path in list(self.root.rglob("*")):
            if _is_wanted(path) and path not in wanted and path.is_file():
                for gone in (path, _beside(path, "stamp"), _beside(path, "part")):
                    gone.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(mirror: Path) -> Iterator[None]:
    """Wait until no other reader fills this mirror: they would take each other's files away."""
    with open(mirror.with_name(f"{mirror.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing it ends it
        yield


def _is_wanted(path: Path) -> bool:
    return path.name in _WANTED or (path.suffix == ".seg" and not path.name.startswith("."))


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _copy_one(files: Any, target: Path, path: str, detail: dict) -> None:
    stamp = str(detail.get("etag") or detail.get("mtime") or detail.get("created"))
    mark = _beside(target, "stamp")
    state = f"{detail.get('size')} {stamp}"
    if target.exists() and mark.exists() and mark.read_text() == state:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target, "part")
    files.get_file(path, str(temporary))
    if target.name == "run.json" and target.exists() and _id(target) != _id(temporary):
        for other in list(target.parent.iterdir()):  # the run that was in this folder before
            if other.is_dir():
                shutil.rmtree(other)
            elif other != temporary:
                other.unlink()
    os.replace(temporary, target)
    mark.write_text(state)


def _id(run_json: Path) -> str:
    with contextlib.suppress(FormatError):
        return folder.read_json(run_json).get("id", "")
    return ""


def _segments_of(compact: Path) -> list[tuple]:
    """Return what changes where a segment beside a compacted file comes, goes or is replaced."""
    states = [(path.name, path.stat()) for path in segments.paths(compact.parent)]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in states]

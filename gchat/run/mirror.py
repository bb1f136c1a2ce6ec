"""A copy of the run folder in a bucket, so that a run outlives its machine.

    MIRROR/metrics/p0-000001.seg …    numbered segments, every 10 s and before each checkpoint
    MIRROR/config.yaml run.json metrics.jsonl tokenizer.json samples.txt report.md …
    MIRROR/checkpoints/STEP/…         written there directly, not by this file

Objects cannot be appended to. A segment is closed at 4 MB and never written again; the one in use
is replaced whole while it grows. The copy has the layout of the run folder, so that it can be
copied back and resumed, or read by gaia-metrics.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gaia import storage
from gaia.errors import ConfigError, GaiaError
from gaia.storage import gcs

EVERY_S = 10.0
_PATIENCE_S = 60.0  # at a checkpoint and at the end; in between, what failed is tried again anyway
_NOT_COPIED = (".lock", ".tmp", ".partial")
_CHECKPOINTS = "checkpoints/"


class Mirror:
    """Copies what changed, in the background and on demand. Without an address it does nothing.

    Args:
        uri: gs:// prefix, or None.
        folder: the run folder.
        process: process 0 copies the folder; the others only their own metric segments.
        every_s: seconds between copies of the metrics.
        is_ours: False when another process has taken the prefix over; then nothing is copied.
    """

    def __init__(
        self,
        uri: str | None,
        folder: Path,
        *,
        process: int = 0,
        every_s: float = EVERY_S,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self._is_ours = is_ours
        self.uri, self._folder, self._process, self._every_s = uri, folder, process, every_s
        self._copied: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failing = False
        self._thread: threading.Thread | None = None
        if uri is not None:
            self._thread = threading.Thread(target=self._run, name="gchat-mirror", daemon=True)
            self._thread.start()

    def copy(self) -> bool:
        """Copies everything that changed, and waits for it; a checkpoint comes after its metrics.

        A bucket that does not answer is reported once; training goes on.

        Returns:
            True where the copy is behind.
        """
        if self.uri is not None:
            self._copy(self._files(metrics_only=False), _PATIENCE_S)
        return self._failing

    def close(self) -> None:
        """Copies what is left and ends the thread."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self.copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._copy(self._files(metrics_only=True), 0.0)

    def _files(self, *, metrics_only: bool) -> list[str]:
        """Names relative to the folder, segments first: a reader finds no line without its run."""
        segments = sorted(self._folder.glob(f"metrics/p{self._process}-*.seg"))
        others: list[Path] = []
        if self._process == 0:
            # Below data/ a stage keeps what it was trained on, which nothing else holds.
            names = ("run.json", "status.json") if metrics_only else ("*", "data/**/*")
            others = [p for name in names for p in sorted(self._folder.glob(name))]
        return [
            path.relative_to(self._folder).as_posix()
            for path in segments + others
            if path.is_file() and not path.name.endswith(_NOT_COPIED) and path.name[0] != "."
        ]

    def _copy(self, names: Sequence[str], patience_s: float) -> None:
        with self._lock:
            if not self._is_ours():
                return
            try:
                for name in names:
                    self._copy_one(name, patience_s)
                if self._failing:
                    self._say(f"{self.uri} takes the run's files again")
                self._failing = False
            except GaiaError as error:
                if not self._failing:
                    self._say(f"the mirror is behind, training goes on: {error.problem}")
                self._failing = True

    def _copy_one(self, name: str, patience_s: float) -> None:
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):  # replaced or rotated meanwhile
            facts = path.stat()
            state = (facts.st_size, facts.st_mtime_ns)
            if self._copied.get(name) != state:
                patience = gcs.Patience(patience_s, on_retry=lambda _: None)
                gcs.write(storage.join(self.uri or "", name), path.read_bytes(), patience)
                self._copied[name] = state

    def _say(self, line: str) -> None:
        print(f"gchat: {line}", file=sys.stderr, flush=True)


def check_free(uri: str | None) -> None:
    """ConfigError where another run is mirrored already; StorageError where writing cannot work."""
    if uri is None:
        return
    if not storage.is_remote(uri):
        raise ConfigError(f"run.mirror = {uri!r} is not a gs:// address", "use gs://bucket/prefix")
    if storage.exists(storage.join(uri, "config.yaml")):
        raise ConfigError(
            f"run.mirror {uri!r} already holds a run",
            "add --resume to go on with it, or choose another prefix",
        )
    gcs.check_writable(uri)


def fetch(mirror: str | None, folder: Path) -> None:
    """Before a resume on a new machine: the run folder from the mirror, where it is missing here.

    Args:
        mirror: of the run; None for a run without one.
        folder: of the run, on this machine.

    Raises:
        ConfigError: the mirror holds no run.
    """
    if mirror is None or (folder / "config.yaml").exists():
        return
    names = [n for n in gcs.list_objects(mirror) if not n.startswith((_CHECKPOINTS, "."))]
    if "config.yaml" not in names:
        raise ConfigError(f"run.mirror {mirror!r} holds no run", "leave out --resume to begin")
    # config.yaml last: without it the folder holds no run, so a fetch cut short begins again.
    for name in sorted(names, key=lambda n: n == "config.yaml"):
        storage.write_bytes(folder / name, gcs.read(storage.join(mirror, name)))
    print(f"fetched {len(names)} files of the run from {mirror}")

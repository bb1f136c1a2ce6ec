"""One writer per run: every place that it writes is locked while it trains."""

import contextlib
import os
from pathlib import Path

from gaia.bucket_lock import BucketLock
from gaia.storage import is_remote
from gaia.writer_lock import WriterLock
from gchat.config import TrainConfig

LOCK = ".gaia.lock"


class RunLock:
    """Locks the run folder, its mirror, and checkpoints that lie in neither.

    Args:
        config: of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        folder = str(config.run.folder)
        parents = [place for place in (folder, config.run.mirror) if place]
        checkpoints = config.checkpoints
        inside = any(is_below(checkpoints, parent) for parent in parents)
        self._places = parents + ([] if inside else [checkpoints])
        self._held = contextlib.ExitStack()
        self._buckets: list[BucketLock] = []

    def take(self) -> None:
        """Locks all of them, or none.

        Raises:
            FolderInUse: another process is writing one of them.
        """
        with contextlib.ExitStack() as taken:
            for place in self._places:
                what = f"the run in {place!r}"
                if is_remote(place):
                    lock = taken.enter_context(BucketLock(place, what))
                    self._buckets.append(lock)
                else:
                    taken.enter_context(WriterLock(Path(place) / LOCK, what))
            self._held = taken.pop_all()

    def release(self) -> None:
        """Lets all of them go."""
        self._held.close()
        self._buckets.clear()

    def check(self) -> None:
        """Raises FolderInUse where another process has taken this one for dead."""
        for lock in self._buckets:
            lock.check()

    @property
    def held(self) -> bool:
        """False after another process has taken over."""
        return all(lock.is_held for lock in self._buckets)


def is_below(place: str, parent: str) -> bool:
    """Tells whether a folder or address lies in another, not only begins with its letters."""
    if is_remote(place) or is_remote(parent):
        return place.startswith(parent.rstrip("/") + "/")
    return Path(os.path.abspath(place)).is_relative_to(os.path.abspath(parent))

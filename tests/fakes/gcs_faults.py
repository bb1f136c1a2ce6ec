"""Faults of the fake Google Cloud Storage, and what it counts.

Whether a request meets a fault depends on the seed, the object's name and how often it was asked
for, not on how the threads of a client happen to take turns: a test meets the same faults each
time.
"""

import collections
import random
import re
import threading
import time
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Faults:
    """Faults of the moment; the default is a healthy, infinitely fast service.

    Attributes:
        latency_s: before the first byte of each answer.
        bandwidth: bytes per second of all bodies together; 0 for no limit.
        fail_share: share of requests answered by one of `codes`.
        codes: HTTP statuses, taken in turn.
        reset_share: share of media answers that break off half-way with a connection reset.
        flip_share: share of media answers with one byte changed.
        match: only requests whose decoded path matches this expression fail, break or flip.
        denied: permissions the caller lacks, such as "storage.objects.get".
        seed: which requests of each object are hit.
    """

    latency_s: float = 0.0
    bandwidth: float = 0.0
    fail_share: float = 0.0
    codes: tuple[int, ...] = (429, 500, 502, 503, 504, 408)
    reset_share: float = 0.0
    flip_share: float = 0.0
    match: str = ""
    denied: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Stats:
    """Counts of what the server did so far.

    Attributes:
        requests: all of them, failed ones included, without those of the control plane.
        gets: bodies of objects begun.
        bytes: bytes of those bodies that went out.
        aborted: bodies that the client did not read to the end.
        failed, reset, flipped: faults injected.
        stored: objects written.
    """

    requests: int = 0
    gets: int = 0
    bytes: int = 0
    aborted: int = 0
    failed: int = 0
    reset: int = 0
    flipped: int = 0
    stored: int = 0
    by_method: dict[str, int] = field(default_factory=dict)


class Trouble:
    """Faults, statistics and the shared link. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.stats = Stats()
        self.set({})

    def set(self, faults: dict) -> None:
        """Replaces all faults: what is not named is healthy."""
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in faults.items()}
        self.faults = Faults(**known)
        self._asked = collections.Counter[tuple[str, str]]()
        self._code = 0

    def reset_stats(self) -> None:
        self.stats = Stats()

    def count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.stats, name, getattr(self.stats, name) + value)

    def request(self, method: str, path: str) -> int | None:
        """Notes a request; the status it is to fail with, or None."""
        with self._lock:
            self.stats.requests += 1
            self.stats.by_method[method] = self.stats.by_method.get(method, 0) + 1
            if not self._hits("fail_share", path):
                return None
            self.stats.failed += 1
            self._code += 1
            return self.faults.codes[self._code % len(self.faults.codes)]

    def breaks(self, path: str) -> bool:
        """Tells whether the body about to be sent breaks off."""
        with self._lock:
            hit = self._hits("reset_share", path)
            self.stats.reset += hit
            return hit

    def flips(self, path: str) -> bool:
        """Tells whether the body about to be sent has a wrong byte."""
        with self._lock:
            hit = self._hits("flip_share", path)
            self.stats.flipped += hit
            return hit

    def _hits(self, kind: str, path: str) -> bool:
        share = getattr(self.faults, kind)
        if share <= 0 or re.search(self.faults.match, path) is None:
            return False
        self._asked[kind, path] += 1
        # Folders of tests are numbered as they come, so only the last part of the path counts.
        key = (self.faults.seed, kind, path.rpartition("/")[2], self._asked[kind, path])
        return random.Random(repr(key)).random() < share

    def wait_first_byte(self) -> None:
        if self.faults.latency_s:
            time.sleep(self.faults.latency_s)

    def wait_link(self, size: int) -> None:
        """Blocks until the link, shared by all connections, has carried `size` more bytes."""
        if not self.faults.bandwidth:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + size / self.faults.bandwidth
        time.sleep(max(0.0, self._free_at - now))

    def snapshot(self) -> dict:
        with self._lock:
            return asdict(self.stats)

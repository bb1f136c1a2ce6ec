"""Rows of T tokens by random access, from whole shards that are kept decoded in memory."""

import collections
import contextlib
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gaia import gcs, storage
from gaia.errors import ConfigError, DataError
from gaia.manifest import Manifest, ShardInfo, load_manifest
from gaia.shard_cache import LIMIT_BYTES, ShardCache
from gaia.shards import read_shard, read_shard_file

# Threads that read shards ahead. One keeps a disk busy; a bucket answers each connection at
# 50-200 MB/s, so several are needed for the first window.
_LOCAL_READERS, _REMOTE_READERS = 1, 4
_JOIN_S = 5.0  # a connection that is silent ends by itself, later


@dataclass(frozen=True)
class CacheOptions:
    """How shards of a gs:// data set are kept on this machine.

    Attributes:
        folder: of the cache; None for `$GAIA_HOME/shards`.
        limit_bytes: most that it holds.
        patience_s: how long a bucket may be silent before reading fails.
    """

    folder: str | Path | None = None
    limit_bytes: int = LIMIT_BYTES
    patience_s: float = gcs.PATIENCE_S


class TokenRows:
    """Rows of T tokens (and their targets) of one split, by random access.

    A shard of n tokens has (n - 1) // T rows. Shards are read whole, checked against the manifest,
    and kept decoded; the least recently used go when more than two windows are held.

    Args:
        data_dir: local folder or gs:// prefix.
        split: "train" or "val".
        seq_len: T.
        manifest: of `data_dir`; read when absent.
        cache: for a gs:// `data_dir`.
    """

    def __init__(
        self,
        data_dir: str | Path,
        split: str,
        seq_len: int,
        manifest: Manifest | None = None,
        cache: CacheOptions | None = None,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len = {seq_len} is not positive", "use at least 1")
        self.data_dir = data_dir
        self.split = split
        self.seq_len = seq_len
        self.manifest = manifest or load_manifest(data_dir)
        self.shards = self.manifest.shards(split)
        self.counts = np.array([(s.tokens - 1) // seq_len for s in self.shards], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        # Two windows: the one in use, and the next, which is read while this one is consumed.
        self._capacity = 2 * self.manifest.window
        self._loaded: collections.OrderedDict[int, Future[np.ndarray]] = collections.OrderedDict()
        self._lock = threading.Lock()
        remote = storage.is_remote(data_dir)
        self._readers = _Readers(_REMOTE_READERS if remote else _LOCAL_READERS)
        self.cache: ShardCache | None = None
        if remote:
            options = cache or CacheOptions()
            self.cache = ShardCache(
                str(data_dir),
                folder=options.folder,
                limit_bytes=options.limit_bytes,
                patience_s=options.patience_s,
                stop=self._readers.stop,
            )

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def locate(self, row_id: int) -> tuple[str, int]:
        """The shard's file name and the row inside it, to report a row to a person."""
        shard = int(np.searchsorted(self.offsets, row_id, side="right")) - 1
        return self.shards[shard].name, int(row_id - self.offsets[shard])

    def _rows(self, shard: int) -> np.ndarray:
        """View [rows, T+1] of one shard's tokens, each row overlapping the next by one."""
        future, mine = self._claim(shard)
        if mine:
            self._read(shard, future)
        return future.result()

    def prefetch(self, shards: list[int]) -> None:
        """Begins to read shards in the background; errors surface when their rows are needed."""
        for shard in shards:
            future, mine = self._claim(shard)
            if mine:
                self._readers.submit(self._read, shard, future)

    def _claim(self, shard: int) -> tuple[Future[np.ndarray], bool]:
        """The future of a shard, and whether the caller is the one who has to read it."""
        with self._lock:
            future = self._loaded.get(shard)
            if mine := future is None:
                future = self._loaded[shard] = Future()
            self._loaded.move_to_end(shard)
            while len(self._loaded) > self._capacity:
                self._loaded.popitem(last=False)
            return future, mine

    def _read(self, shard: int, future: Future[np.ndarray]) -> None:
        with contextlib.suppress(InvalidStateError):  # closed meanwhile
            try:
                tokens = self._tokens(self.shards[shard])
                rows = np.lib.stride_tricks.sliding_window_view(tokens, self.seq_len + 1)
                future.set_result(rows[:: self.seq_len])
            except BaseException as error:
                future.set_exception(error)

    def _tokens(self, shard: ShardInfo) -> np.ndarray:
        """One shard's tokens, from the cache or from where they lie."""
        tokenizer, where = self.manifest.tokenizer, storage.join(self.data_dir, shard.name)
        try:
            if self.cache is None:
                return read_shard(self.data_dir, shard, tokenizer)[0]
            for again in (True, False):
                with self.cache.open(shard) as path:
                    try:
                        return read_shard_file(path, where, shard, tokenizer)[0]
                    except DataError:
                        self.cache.drop(shard)  # it was sound when it was put there
                        if not again:
                            raise
            raise AssertionError("unreachable")
        except DataError as error:
            raise self._since_changed(error) from error

    def _since_changed(self, error: DataError) -> DataError:
        """The same error, or that the data set was replaced while it was being read."""
        try:
            now = load_manifest(self.data_dir)
        except Exception:
            return error
        if now.fingerprint() == self.manifest.fingerprint():
            return error
        return DataError(
            f"{self.data_dir} was changed while it was being read: it had "
            f"{self.manifest.fingerprint()} and now has {now.fingerprint()} ({error.problem})",
            "put the old data back, or start a new run",
        )

    def gather(self, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows as (inputs_BT, targets_BT), int32, for row_ids [B]."""
        tokens_BU = self.gather_tokens(row_ids)
        return tokens_BU[:, :-1].astype(np.int32), tokens_BU[:, 1:].astype(np.int32)

    def gather_tokens(self, row_ids: np.ndarray) -> np.ndarray:
        """Rows with their last target, [B, T+1] uint16 or uint32, for row_ids [B]."""
        shard_B = np.searchsorted(self.offsets, row_ids, side="right") - 1
        local_B = row_ids - self.offsets[shard_B]
        tokens_BU = np.empty((len(row_ids), self.seq_len + 1), self.manifest.tokenizer.dtype)
        for shard in sorted(set(shard_B.tolist())):
            here = shard_B == shard
            tokens_BU[here] = self._rows(shard)[local_B[here]]
        return tokens_BU

    def metrics(self) -> dict[str, float]:
        """What the shard cache did since this was last asked; empty for local data."""
        return self.cache.take() if self.cache is not None else {}

    def close(self) -> None:
        """Lets go of the shards and the background threads, also where they wait for a bucket."""
        self._readers.close()
        with self._lock:
            for future in self._loaded.values():
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(gcs.Stopped(f"{self.data_dir} was closed", ""))
            self._loaded.clear()


class _Readers:
    """Background threads for whole shards.

    Not a ThreadPoolExecutor: Python joins its threads at exit, and one that waits for a bucket
    would hold up a run that has failed already. These end when `stop` is set.
    """

    def __init__(self, count: int) -> None:
        self.stop = threading.Event()
        self._work: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._count = count
        self._threads: list[threading.Thread] = []

    def submit(self, *call: Any) -> None:
        """Queues call[0](*call[1:])."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._run, name=f"gaia-shards-{i}", daemon=True)
                for i in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        self._work.put(call)

    def _run(self) -> None:
        while (call := self._work.get()) is not None and not self.stop.is_set():
            call[0](*call[1:])

    def close(self) -> None:
        """Ends the threads after what they are reading now."""
        self.stop.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(_JOIN_S)
        self._threads = []


class MixedRows:
    """Rows of several data sets under one numbering: source after source.

    Args:
        sources: by name; all of one seq_len and one tokenizer.

    Raises:
        DataError: the sources were made with different tokenizers.
    """

    def __init__(self, sources: Mapping[str, TokenRows]) -> None:
        self.sources = dict(sources)
        self._rows = list(sources.values())
        self.offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in self._rows])])
        first, *others = sources.items()
        for name, rows in others:
            ours, theirs = first[1].manifest.tokenizer, rows.manifest.tokenizer
            if ours.sha256 != theirs.sha256:
                raise DataError(
                    f"data.mixture {name} has another tokenizer ({theirs.kind} "
                    f"{theirs.sha256[:12]}) than {first[0]} ({ours.kind} {ours.sha256[:12]})",
                    f"prepare it with --tokenizer {first[1].data_dir}/tokenizer.json",
                )

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def locate(self, row_id: int) -> tuple[str, int]:
        """The shard, as name/file, and the row inside it."""
        source = int(np.searchsorted(self.offsets, row_id, side="right")) - 1
        shard, row = self._rows[source].locate(int(row_id - self.offsets[source]))
        return f"{list(self.sources)[source]}/{shard}", row

    def gather(self, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows as (inputs_BT, targets_BT), int32, for row_ids [B]."""
        source_B = np.searchsorted(self.offsets, row_ids, side="right") - 1
        tokens_BU = np.empty((len(row_ids), self._rows[0].seq_len + 1), np.int32)
        for source in sorted(set(source_B.tolist())):
            here = source_B == source
            local = row_ids[here] - self.offsets[source]
            tokens_BU[here] = self._rows[source].gather_tokens(local)
        return tokens_BU[:, :-1].copy(), tokens_BU[:, 1:].copy()

    def prefetch(self, shards: list[tuple[int, int]]) -> None:
        """Begins to read (source, shard) pairs in the background."""
        for source, shard in shards:
            self._rows[source].prefetch([shard])

    def metrics(self) -> dict[str, float]:
        """What the shard caches did together since this was last asked."""
        total: collections.Counter[str] = collections.Counter()
        for rows in self._rows:
            total.update(rows.metrics())
        return dict(total)

    def close(self) -> None:
        """Lets go of every source."""
        for rows in self._rows:
            rows.close()

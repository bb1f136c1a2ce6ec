"""Token shards as training batches: rows by random access, an order by (seed, epoch, position).

    order: position in the epoch -> permuted shards -> window of W shards -> permuted row in it
    rows:  row id -> stream tokens [r*T, r*T+T] of its shard, inputs and targets overlapping by one
    batch: step k holds positions [k*B, (k+1)*B) of the endless sequence of epochs

Every step is a pure function of (data, seed, T, B, k), so the only state is k, and any number of
processes read disjoint slices of the same batch.

The names of gaia.manifest and gaia.shards that callers need are exported here as well.
"""

import collections
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grain
import numpy as np

from gaia.errors import ConfigError, DataError
from gaia.manifest import (
    MANIFEST,
    SPLITS,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    load_manifest,
    write_manifest,
)
from gaia.shards import ShardWriter, read_shard, verify, write_shards

__all__ = [
    "MANIFEST", "SPLITS", "BatchOrder", "Loader", "Manifest", "ShardInfo", "ShardWriter",
    "TokenRows", "TokenizerInfo", "iter_documents", "load_manifest", "make_loader",
    "permutation", "read_shard",
    "verify", "write_manifest", "write_shards",
]  # fmt: skip

_STEPS = 1 << 40  # the loader never ends; Grain wants a length


class TokenRows:
    """Rows of T tokens (and their targets) of one split, by random access.

    A shard of n tokens has (n - 1) // T rows. Shards are read whole, checked against the manifest,
    and kept decoded; the least recently used go when more than two windows are held.

    Args:
        data_dir: local folder or gs:// prefix.
        split: "train" or "val".
        seq_len: T.
        manifest: of `data_dir`; read when absent.
    """

    def __init__(
        self, data_dir: str | Path, split: str, seq_len: int, manifest: Manifest | None = None
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
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gaia-shards")

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

    def prefetch(self, shards: np.ndarray) -> None:
        """Begins to read shards in the background; errors surface when their rows are needed."""
        for shard in shards.tolist():
            future, mine = self._claim(shard)
            if mine:
                self._pool.submit(self._read, shard, future)

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
        try:
            tokens, _ = read_shard(self.data_dir, self.shards[shard], self.manifest.tokenizer)
            rows = np.lib.stride_tricks.sliding_window_view(tokens, self.seq_len + 1)
            future.set_result(rows[:: self.seq_len])
        except BaseException as error:
            future.set_exception(error)

    def gather(self, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows as (inputs_BT, targets_BT), int32, for row_ids [B]."""
        shard_B = np.searchsorted(self.offsets, row_ids, side="right") - 1
        local_B = row_ids - self.offsets[shard_B]
        tokens_BU = np.empty((len(row_ids), self.seq_len + 1), self.manifest.tokenizer.dtype)
        for shard in sorted(set(shard_B.tolist())):
            here = shard_B == shard
            tokens_BU[here] = self._rows(shard)[local_B[here]]
        return tokens_BU[:, :-1].astype(np.int32), tokens_BU[:, 1:].astype(np.int32)

    def close(self) -> None:
        """Lets go of the shards and the background thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._loaded.clear()


class BatchOrder:
    """Which row stands at which position: a pure function of (seed, epoch, position).

    Each epoch permutes the shards, takes them W at a time, and permutes all rows inside such a
    window, so that every row comes exactly once and only W shards are needed at a time.

    Args:
        counts: rows per shard.
        window: W.
        seed: any integer.
    """

    def __init__(self, counts: np.ndarray, window: int, seed: int) -> None:
        self._counts = np.asarray(counts, np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._counts)])
        self._window = window
        self._seed = seed
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._cache: collections.OrderedDict[tuple[int, ...], np.ndarray] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def row_ids(self, start: int, count: int) -> np.ndarray:
        """Row ids [count] int64 at positions start, start+1, … of the endless sequence."""
        parts = []
        while count:
            epoch, index = divmod(start, len(self))
            ends = self._epoch(epoch)[1]
            window = int(np.searchsorted(ends, index, side="right"))
            first = int(ends[window - 1]) if window else 0
            take = min(count, int(ends[window]) - index)
            parts.append(self._window_rows(epoch, window)[index - first : index - first + take])
            start += take
            count -= take
        return np.concatenate(parts)

    def upcoming(self, start: int) -> tuple[int, int]:
        """(epoch, window) that follows the window at position `start`."""
        epoch, index = divmod(start, len(self))
        ends = self._epoch(epoch)[1]
        window = int(np.searchsorted(ends, index, side="right")) + 1
        if window == len(ends):
            return epoch + 1, 0
        return epoch, window

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the position after the last row of each window."""
        found = self._epochs.get(epoch)
        if found is None:
            shards = permutation(len(self._counts), self._seed, epoch)
            total = np.cumsum(self._counts[shards])
            ends = np.append(total[self._window - 1 : -1 : self._window], total[-1])
            self._epochs = {**self._epochs, epoch: (shards, ends)}
            if len(self._epochs) > 3:
                del self._epochs[min(self._epochs)]
            found = shards, ends
        return found

    def window_shards(self, epoch: int, window: int) -> np.ndarray:
        """Numbers of the shards in one window."""
        first = window * self._window
        return self._epoch(epoch)[0][first : first + self._window]

    def _window_rows(self, epoch: int, window: int) -> np.ndarray:
        """All row ids of a window in their order; the two last used are kept."""
        key = (epoch, window)
        with self._lock:
            if key not in self._cache:
                ids = np.concatenate(
                    [
                        np.arange(int(self._offsets[shard]), int(self._offsets[shard + 1]))
                        for shard in self.window_shards(epoch, window).tolist()
                    ]
                )
                self._cache[key] = ids[permutation(len(ids), self._seed, epoch, window)]
                while len(self._cache) > 2:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]


def permutation(count: int, *salt: int) -> np.ndarray:
    """A permutation of range(count) that is the same on every machine and NumPy version.

    Sorts by splitmix64 (Steele et al. 2014) of the index; NumPy's own generators do not promise
    the same stream for ever, and the order of a run must survive an upgrade.
    """
    state = 0
    for value in (count, *salt):
        state = int(_splitmix64(np.array([(state + value) & (2**64 - 1)], np.uint64))[0])
    keys = _splitmix64(np.arange(count, dtype=np.uint64) + np.uint64(state))
    return np.argsort(keys, kind="stable")


def _splitmix64(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Loader(Iterator[dict[str, np.ndarray]]):
    """Endless batches for one process; see make_loader.

    Attributes:
        step: the step of the batch that `next` returns; the only state there is.
        rows: the TokenRows read from.
        order: the BatchOrder followed.
    """

    def __init__(
        self,
        rows: TokenRows,
        order: BatchOrder,
        batch_size: int,
        start_step: int,
        rows_here: np.ndarray | slice,
        prefetch: int,
    ) -> None:
        self.rows = rows
        self.order = order
        self.batch_size = batch_size
        self.step = start_step
        self._upcoming = (-1, -1)
        self._slice = rows_here
        options = grain.ReadOptions(num_threads=1 if prefetch else 0, prefetch_buffer_size=prefetch)
        dataset = grain.MapDataset.source(_Batches(self)).to_iter_dataset(options)
        self._iterator = iter(dataset)
        self._iterator.set_state({"next_index": start_step})

    def row_ids(self, step: int) -> np.ndarray:
        """Row ids [B] int64 of the global batch at a step, in order."""
        return self.order.row_ids(step * self.batch_size, self.batch_size)

    def locate(self, row_id: int) -> tuple[str, int]:
        """The shard's file name and the row in it."""
        return self.rows.locate(row_id)

    @property
    def steps_per_epoch(self) -> float:
        """Batches that hold every row once."""
        return len(self.rows) / self.batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's part of the batch at any step, by random access."""
        ids = self.row_ids(step)[self._slice]
        inputs_BT, targets_BT = self.rows.gather(ids)
        if (upcoming := self.order.upcoming(step * self.batch_size)) != self._upcoming:
            self._upcoming = upcoming
            self.rows.prefetch(self.order.window_shards(*upcoming))
        return {"inputs_BT": inputs_BT, "targets_BT": targets_BT}

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self.step += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the background threads."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self.rows.close()


class _Batches:
    """Whole batches by step: Grain's random-access source, batched before it iterates."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return _STEPS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._loader.batch(int(index))

    def __repr__(self) -> str:
        return f"TokenBatches({self._loader.rows.data_dir!s}, {self._loader.rows.split})"


def make_loader(
    data_dir: str | Path,
    *,
    split: str = "train",
    seq_len: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    rows_here: np.ndarray | None = None,
    prefetch: int = 8,
) -> Loader:
    """Endless batches of a prepared data set.

    Args:
        data_dir: local folder or gs:// prefix with a manifest.json.
        batch_size: B, rows of the global batch; each process gets B / process_count of them,
            process i the slice that begins at i * B / process_count.
        start_step: the first step to return; `start_step=k` continues a run that made k steps.
        rows_here: which rows of each batch this process gets, where that is no such slice.
        prefetch: batches made ahead by one background thread; 0 makes them when asked.

    Returns:
        A Loader yielding {"inputs_BT": int32, "targets_BT": int32}, targets shifted by one.

    Raises:
        DataError: missing or damaged data, or fewer rows than one batch.
        ConfigError: seq_len or batch_size below 1, or B not divisible by process_count.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} is not positive", "use at least 1")
    if batch_size % process_count:
        raise ConfigError(
            f"batch_size = {batch_size} is not divisible by process_count = {process_count}",
            "use a multiple of the number of processes",
        )
    if not 0 <= process_index < process_count:
        raise ConfigError(
            f"process_index = {process_index} is outside 0..{process_count - 1}",
            "number the processes from 0",
        )
    rows = TokenRows(data_dir, split, seq_len)
    if len(rows) < batch_size:
        raise DataError(
            f"{split} of {str(data_dir)!r} has {len(rows)} rows of seq_len = {seq_len} "
            f"({rows.manifest.tokens(split):,} tokens), less than one batch of {batch_size}",
            "use more text, a smaller batch_size or a smaller seq_len",
        )
    order = BatchOrder(rows.counts, rows.manifest.window, seed)
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    return Loader(
        rows, order, batch_size, start_step, mine if rows_here is None else rows_here, prefetch
    )


def iter_documents(data_dir: str | Path, split: str) -> Iterator[np.ndarray]:
    """The documents of a split in stored order: tokens [n] each, the BOS first."""
    manifest = load_manifest(data_dir)
    for shard in manifest.shards(split):
        tokens, starts = read_shard(data_dir, shard, manifest.tokenizer)
        ends = np.append(starts[1:], len(tokens))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield tokens[start:end]

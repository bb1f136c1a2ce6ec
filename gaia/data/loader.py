"""Token shards as training batches: rows by random access, in the order of gaia.data.order.

    rows:  row id -> stream tokens [r*T, r*T+T] of its shard, inputs and targets overlapping by one,
           or the documents that gaia.data.packing put into one row
    batch: step k holds positions [k*B, (k+1)*B) of the endless sequence of epochs

Every step is a pure function of (data, seed, T, B, k), so the only state is k, and any number of
processes read disjoint slices of the same batch. Shards of a gs:// data set come through
gaia.data.shard_cache, those of a local or mounted folder are read where they lie.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import grain
import numpy as np

from gaia.data.batch import Batch
from gaia.data.lanes import LaneOrder, LaneRows
from gaia.data.manifest import load_manifest
from gaia.data.order import BatchOrder, MixtureOrder
from gaia.data.packing import Example, Packing
from gaia.data.rows import CacheOptions, MixedRows, TokenRows
from gaia.data.shards import read_shard
from gaia.errors import ConfigError, DataError

_STEPS = 1 << 40  # the loader never ends; Grain wants a length


class Loader(Iterator[Batch]):
    """Endless batches for one process; see make_loader.

    Attributes:
        step: the step of the batch that `next` returns; the only state there is.
        rows: the TokenRows, MixedRows or LaneRows read from.
        order: the BatchOrder, MixtureOrder or LaneOrder followed.
    """

    def __init__(
        self,
        rows: TokenRows | MixedRows | LaneRows,
        order: BatchOrder | MixtureOrder | LaneOrder,
        batch_size: int,
        start_step: int,
        rows_here: np.ndarray | slice,
        prefetch: int,
    ) -> None:
        self.rows = rows
        self.order = order
        self.batch_size = batch_size
        self.step = start_step
        self._place: Any = None
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

    def describe(self) -> str:
        """One sentence on how rows are made, how full they are, and which documents are cut."""
        rows, packing = self.rows, self.rows.packing
        if isinstance(rows, LaneRows):
            return rows.describe()
        if packing == "split":
            return f"packing: split, {len(rows):,} rows of {rows.seq_len}, one stream cut anywhere"
        return (
            f"packing: {packing}, {len(rows):,} rows of {rows.seq_len} are "
            f"{rows.tokens_per_row / rows.seq_len:.2%} full"
            + f", {rows.cut_documents:,} longer documents are cut"
            * bool(rows.cut_documents)
        )

    def batch(self, step: int) -> Batch:
        """This process's part of the batch at any step, by random access."""
        if isinstance(self.order, LaneOrder):
            # Only of the lanes of this process is known, or ever asked, how many rows come.
            mine = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self._slice]
            return self.rows.gather(self.order.at(mine))
        place = self.order.place(step * self.batch_size)
        if place != self._place:
            self._place = place
            # Not type-checked: rows and order are both of one data set, or both of a mixture.
            order: Any = self.order
            rows: Any = self.rows
            for ahead in (0, 1):
                rows.prefetch(order.shards(place, ahead))
        return self.rows.gather(self.row_ids(step)[self._slice])

    def metrics(self, step: int) -> dict[str, float]:
        """Figures for the log after `step` steps: tokens by source, and what the cache did."""
        figures = self.rows.metrics()
        if isinstance(self.order, MixtureOrder) and isinstance(self.rows, MixedRows):
            taken = self.order.taken(step * self.batch_size).tolist()
            for (name, rows), count in zip(self.rows.sources.items(), taken, strict=True):
                figures[f"data/tokens/{name}"] = count * rows.tokens_per_row
                figures[f"data/epochs/{name}"] = count / len(rows)
        return figures

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self.step += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the background threads."""
        self.rows.close()  # first: Grain's thread may be waiting for one of its shards
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


class _Batches:
    """Whole batches by step: Grain's random-access source, batched before it iterates."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return _STEPS

    def __getitem__(self, index: int) -> Batch:
        return self._loader.batch(int(index))

    def __repr__(self) -> str:
        return f"TokenBatches({self._loader.describe()})"


def make_loader(
    data_dir: str | Path | Mapping[str, str | Path],
    *,
    weights: Mapping[str, float] | None = None,
    split: str = "train",
    seq_len: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    rows_here: np.ndarray | None = None,
    prefetch: int = 8,
    cache: CacheOptions | None = None,
    packing: Packing = "split",
) -> Loader:
    """Endless batches of a prepared data set, or of a mixture of several.

    Args:
        data_dir: local folder or gs:// prefix with a manifest.json; for a mixture, one by name.
        weights: share of rows by name, for a mixture.
        batch_size: B, rows of the global batch; each process gets B / process_count of them,
            process i the slice that begins at i * B / process_count.
        start_step: the first step to return; `start_step=k` continues a run that made k steps.
        rows_here: which rows of each batch this process gets, where that is no such slice.
        prefetch: batches made ahead by one background thread; 0 makes them when asked.
        cache: where shards of gs:// data are kept.
        packing: how documents become rows (gaia.data.packing).

    Returns:
        A Loader of Batches, each array int32 [B / process_count, T], targets shifted by one;
        positions_BT and segments_BT are None where rows are `split`, weights_BT always.

    Raises:
        DataError: missing or damaged data, or fewer rows than one batch.
        ConfigError: seq_len or batch_size below 1, or B not divisible by process_count.
    """
    _check_shares(batch_size, process_index, process_count)
    options = {"cache": cache, "packing": packing}
    rows, order = (
        _mixture(data_dir, weights or {}, split, seq_len, seed, options)
        if isinstance(data_dir, Mapping)
        else _one(data_dir, split, seq_len, seed, options)
    )
    if len(rows) < batch_size:
        tokens = "" if isinstance(rows, MixedRows) else f"{rows.manifest.tokens(split):,} tokens"
        raise DataError(
            f"{split} of {str(data_dir)!r} has {len(rows)} rows of seq_len = {seq_len} "
            f"({tokens}), less than one batch of {batch_size}",
            "use more text, a smaller batch_size or a smaller seq_len",
        )
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    return Loader(
        rows, order, batch_size, start_step, mine if rows_here is None else rows_here, prefetch
    )


def make_lane_loader(
    rows: LaneRows,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows_here: np.ndarray | None = None,
    prefetch: int = 8,
) -> Loader:
    """`make_loader` for text that is tokenized as it is needed; the arguments mean the same."""
    _check_shares(batch_size, 0, 1)
    here = slice(None) if rows_here is None else rows_here
    return Loader(rows, LaneOrder(rows, batch_size, seed), batch_size, start_step, here, prefetch)


def _check_shares(batch_size: int, process_index: int, process_count: int) -> None:
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


def _one(
    data_dir: str | Path, split: str, seq_len: int, seed: int, options: dict[str, Any]
) -> tuple[TokenRows, BatchOrder]:
    rows = TokenRows(data_dir, split, seq_len, **options)
    return rows, BatchOrder(rows.counts, rows.manifest.window, seed)


def _mixture(
    folders: Mapping[str, str | Path],
    weights: Mapping[str, float],
    split: str,
    seq_len: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[MixedRows, MixtureOrder]:
    """Rows of all sources; those of the same size must not go through theirs in the same order."""
    made = {
        name: _one(where, split, seq_len, seed + i, options)
        for i, (name, where) in enumerate(folders.items())
    }
    sources = {name: rows for name, (rows, _) in made.items()}
    if empty := next((name for name, rows in sources.items() if not len(rows)), None):
        raise DataError(
            f"data.mixture {empty} has no row of seq_len = {seq_len}",
            "use more text or a smaller seq_len",
        )
    orders = {name: order for name, (_, order) in made.items()}
    return MixedRows(sources), MixtureOrder(orders, weights, seed)


def iter_documents(data_dir: str | Path, split: str) -> Iterator[np.ndarray]:
    """Tokens [n] of each document of a split in stored order, the BOS first."""
    return (example.tokens for example in iter_examples(data_dir, split))


def iter_examples(data_dir: str | Path, split: str) -> Iterator[Example]:
    """The documents of a split in stored order with their loss masks, all True where none are."""
    manifest = load_manifest(data_dir)
    for shard in manifest.shards(split):
        tokens_N, starts, mask_N = read_shard(data_dir, shard, manifest)
        if mask_N is None:
            mask_N = np.ones(len(tokens_N), bool)
        ends = np.append(starts[1:], len(tokens_N))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield Example(tokens_N[start:end], mask_N[start:end])

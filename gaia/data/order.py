"""The order of training rows: a pure function of (seed, epoch, position), the same everywhere.

position in the epoch -> permuted shards -> window of W shards -> permuted row in it
mixture: position -> source, by weight -> that source's own endless sequence of epochs
"""

import collections
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from gaia.errors import ConfigError

_BLOCK = 1 << 16  # positions of a mixture over which every weight is met exactly


class BatchOrder:
    """Order of the rows of one data set: a pure function of (seed, epoch, position).

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

    def place(self, start: int) -> tuple[int, int]:
        """(epoch, window) of position `start`; while it stays the same, so do the shards."""
        epoch, index = divmod(start, len(self))
        return epoch, int(np.searchsorted(self._epoch(epoch)[1], index, side="right"))

    def shards(self, place: tuple[int, int], ahead: int) -> list[int]:
        """Numbers of the shards in the window `ahead` windows (0 or 1) behind `place`."""
        epoch, window = place
        if ahead:
            window += 1
            if window == len(self._epoch(epoch)[1]):
                epoch, window = epoch + 1, 0
        return self.window_shards(epoch, window).tolist()

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the position after the last row of each window."""
        known = self._epochs.get(epoch)
        if known is None:
            shards = permutation(len(self._counts), self._seed, epoch)
            total = np.cumsum(self._counts[shards])
            ends = np.append(total[self._window - 1 : -1 : self._window], total[-1])
            self._epochs = {**self._epochs, epoch: (shards, ends)}
            if len(self._epochs) > 3:
                del self._epochs[min(self._epochs)]
            known = shards, ends
        return known

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


class MixtureOrder:
    """Rows of several data sets in one endless sequence, each source with its share of the rows.

    Positions are taken in blocks of 65,536. In each block every source has exactly its share (the
    weights are rounded to 1/65,536), in a permuted order; its rows follow its own BatchOrder, which
    begins anew when it is through. A small source with a large weight is thereby up-sampled.

    Args:
        orders: the order of each source, by name.
        weights: share of rows by name; they are scaled to a sum of 1.
        seed: any integer.

    Raises:
        ConfigError: a weight without a source or the other way round, or one that is too small.
    """

    def __init__(
        self, orders: Mapping[str, BatchOrder], weights: Mapping[str, float], seed: int
    ) -> None:
        if orders.keys() != weights.keys():
            odd = ", ".join(sorted(orders.keys() ^ weights.keys()))
            raise ConfigError(
                f"data.mixture and data.weights do not name the same sources ({odd})",
                "give each source one directory and one weight",
            )
        total = sum(weights.values())
        for name, weight in weights.items():
            if not weight > 0 or round(weight / total * _BLOCK) < 1:
                raise ConfigError(
                    f"data.weights {name} is {weight}", f"use a share above 1/{_BLOCK}, or leave it"
                )
        self.names = list(orders)
        self._orders = [orders[name] for name in self.names]
        self._quotas = _quotas([weights[name] / total for name in self.names])
        self._offsets = np.concatenate([[0], np.cumsum([len(order) for order in self._orders])])
        self._seed = seed
        self._blocks: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def row_ids(self, start: int, count: int) -> np.ndarray:
        """Row ids [count] int64; those of source i begin at the sum of the sizes before it."""
        ids = np.empty(count, np.int64)
        done = 0
        while done < count:
            block, at = divmod(start + done, _BLOCK)
            take = min(count - done, _BLOCK - at)
            firsts = self.taken(start + done)
            source = self._sources(block)[at : at + take]
            for i, order in enumerate(self._orders):
                here = np.flatnonzero(source == i)
                if len(here):
                    rows = order.row_ids(int(firsts[i]), len(here))
                    ids[done + here] = rows + self._offsets[i]
            done += take
        return ids

    def taken(self, start: int) -> np.ndarray:
        """Rows of each source [sources] int64 before position `start`."""
        block, at = divmod(start, _BLOCK)
        within = np.bincount(self._sources(block)[:at], minlength=len(self._orders))
        return block * self._quotas + within

    def place(self, start: int) -> tuple[tuple[int, int], ...]:
        """The place of each source; while they stay the same, so do the shards."""
        firsts = self.taken(start).tolist()
        return tuple(o.place(first) for o, first in zip(self._orders, firsts, strict=True))

    def shards(self, place: tuple[tuple[int, int], ...], ahead: int) -> list[tuple[int, int]]:
        """(source, shard) pairs of the windows at `place`, or of those behind them."""
        return [
            (i, shard)
            for i, (order, there) in enumerate(zip(self._orders, place, strict=True))
            for shard in order.shards(there, ahead)
        ]

    def _sources(self, block: int) -> np.ndarray:
        """The source of each position in a block, uint16 [65536]; the two last used are kept."""
        with self._lock:
            if block not in self._blocks:
                sources = np.repeat(np.arange(len(self._quotas), dtype=np.uint16), self._quotas)
                self._blocks[block] = sources[permutation(_BLOCK, self._seed, block, 0x6D6978)]
                while len(self._blocks) > 2:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(block)
            return self._blocks[block]


def _quotas(shares: Sequence[float]) -> np.ndarray:
    """Positions of each source in a block; the largest remainders get what rounding leaves."""
    exact = np.array(shares) * _BLOCK
    quotas = np.floor(exact).astype(np.int64)
    left = _BLOCK - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    return quotas


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

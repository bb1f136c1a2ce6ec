"""Rows of T tokens by random access, from whole shards that are kept decoded in memory."""

import collections
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gaia import storage
from gaia.data import packing as packers
from gaia.data.batch import IGNORE, Batch
from gaia.data.chunks import Stream
from gaia.data.lengths import LENGTHS, read_lengths
from gaia.data.manifest import Manifest, ShardInfo, load_manifest
from gaia.data.packing import Packing
from gaia.data.read_ahead import ReadAhead
from gaia.data.shard_cache import LIMIT_BYTES, ShardCache
from gaia.data.shards import read_shard, read_shard_file
from gaia.errors import ConfigError, DataError
from gaia.storage import gcs

# Threads that read shards ahead. One keeps a disk busy; a bucket answers each connection at
# 50-200 MB/s, so several are needed for the first window.
_LOCAL_READERS, _REMOTE_READERS = 1, 4


@dataclass(frozen=True)
class CacheOptions:
    """Place and limits of the shards of a gs:// data set on this machine.

    Attributes:
        folder: of the cache; None for `$GAIA_HOME/shards`.
        limit_bytes: most that it holds.
        patience_s: how long a bucket may be silent before reading fails.
    """

    folder: str | Path | None = None
    limit_bytes: int = LIMIT_BYTES
    patience_s: float = gcs.PATIENCE_S


class Decoded:
    """Documents of one shard, or another stretch of text, in memory as rows.

    A target is learned where the mask holds for the token that is predicted. Behind a document
    comes BOS, whatever document is next, so it is learned where the document's own BOS is.

    Args:
        stream: its documents.
        seq_len: T.
        packing: how rows are made of it.
        bos_id: what each document begins with.

    Raises:
        ValueError: a document to pack begins otherwise: its predecessor would predict its text.
    """

    def __init__(self, stream: Stream, seq_len: int, packing: Packing, bos_id: int) -> None:
        tokens_N, starts, mask_N = stream
        self.plan: packers.Plan | None = None
        self._tokens = tokens_N
        self._learned = None if mask_N is None else _learned(mask_N, starts)
        if not len(tokens_N) or (packing == "split" and len(tokens_N) <= seq_len):
            self.rows_RU = np.empty((0, seq_len + 1), tokens_N.dtype)
            return
        if packing == "split":
            # Each row overlaps the next by one token.
            view = np.lib.stride_tricks.sliding_window_view
            self.rows_RU = view(tokens_N, seq_len + 1)[::seq_len]
            if self._learned is not None:
                self._learned_RT = view(self._learned[:-1], seq_len)[::seq_len]
            return
        begins = tokens_N[starts] == bos_id
        if mask_N is not None:  # what a document without BOS begins with is learned nowhere
            begins |= ~mask_N[starts]
        if not begins.all():
            raise ValueError(f"a document does not begin with BOS, id {bos_id}")
        self.plan = packers.plan(starts, len(tokens_N), seq_len, packing)
        self._tokens = np.append(tokens_N, np.array(bos_id, tokens_N.dtype))  # the last target

    def __len__(self) -> int:
        return len(self.rows_RU if self.plan is None else self.plan)

    def gather(self, row_ids: np.ndarray) -> Batch:
        """Rows [B] as a batch; without positions and segments where they are `split`."""
        if self.plan is not None:
            return self.plan.gather(row_ids, self._tokens[:-1], self._tokens[1:], self._learned)
        tokens_BU = self.rows_RU[row_ids]
        targets_BT = tokens_BU[:, 1:]
        if self._learned is not None:
            targets_BT = np.where(self._learned_RT[row_ids], targets_BT.astype(np.int32), IGNORE)
        return Batch(tokens_BU[:, :-1], targets_BT)


def _learned(mask_N: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """bool [N]: the target of each position is learned."""
    learned_N = np.empty_like(mask_N)
    learned_N[:-1] = mask_N[1:]
    ends = np.append(starts[1:], len(mask_N)) - 1
    learned_N[ends] = mask_N[starts]
    return learned_N


class TokenRows:
    """Rows of T tokens (and their targets) of one split, by random access.

    A shard of n tokens has (n - 1) // T rows, or as many as gaia.data.packing makes of its
    documents. Shards are read whole, checked against the manifest, and kept decoded; the least
    recently used go when more than two windows are held.

    Args:
        data_dir: local folder or gs:// prefix.
        split: "train" or "val".
        seq_len: T.
        manifest: of `data_dir`; read when absent.
        cache: for a gs:// `data_dir`.
        packing: how documents become rows; other than `split` needs lengths.npz.

    Attributes:
        counts: rows of each shard.
        offsets: the first row id of each shard, and the number of rows.
        cut_documents: documents longer than T, which packing cuts into pieces; 0 for `split`, which
            cuts anywhere.
    """

    def __init__(
        self,
        data_dir: str | Path,
        split: str,
        seq_len: int,
        manifest: Manifest | None = None,
        cache: CacheOptions | None = None,
        packing: Packing = "split",
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len = {seq_len} is not positive", "use at least 1")
        self.data_dir = data_dir
        self.split = split
        self.seq_len = seq_len
        self.manifest = manifest or load_manifest(data_dir)
        self.shards = self.manifest.shards(split)
        self.packing: Packing = packing
        self.cut_documents = 0
        self.counts = self._count()
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        remote = storage.is_remote(data_dir)
        self._shards = ReadAhead(
            self._decoded,
            name=str(data_dir),
            # Two windows: the one in use, and the next, which is read while this one is consumed.
            capacity=2 * self.manifest.window,
            threads=_REMOTE_READERS if remote else _LOCAL_READERS,
        )
        self.cache: ShardCache | None = None
        if remote:
            options = cache or CacheOptions()
            self.cache = ShardCache(
                str(data_dir),
                folder=options.folder,
                limit_bytes=options.limit_bytes,
                patience_s=options.patience_s,
                stop=self._shards.stop,
            )

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def _count(self) -> np.ndarray:
        """Rows of each shard [shards] int64, before any of them is read."""
        if self.packing == "split":
            return np.array([(s.tokens - 1) // self.seq_len for s in self.shards], np.int64)
        if self.split != "train":
            raise ConfigError(f"split {self.split} cannot be packed", "pack train, score the rest")
        lengths = read_lengths(self.data_dir, self.manifest)
        self.cut_documents = sum(int(n[length > self.seq_len].sum()) for length, n in lengths)
        return np.array(
            [packers.count_rows(*each, self.seq_len, self.packing) for each in lengths], np.int64
        )

    @property
    def tokens_per_row(self) -> float:
        """Mean tokens of text in a row, padding left out."""
        if self.packing == "split":
            return float(self.seq_len)
        return self.manifest.tokens(self.split) / max(1, len(self))

    def locate(self, row_id: int) -> tuple[str, int]:
        """The shard's file name and the row inside it, to report a row to a person."""
        shard = int(np.searchsorted(self.offsets, row_id, side="right")) - 1
        return self.shards[shard].name, int(row_id - self.offsets[shard])

    def prefetch(self, shards: list[int]) -> None:
        """Begins to read shards in the background; errors surface when their rows are needed."""
        self._shards.ahead(shards)

    def _decoded(self, number: int) -> Decoded:
        """One shard as rows; DataError where they are not those that the order counts on."""
        shard = self.shards[number]
        where, remedy = storage.join(self.data_dir, shard.name), "prepare the data again"
        bos_id = self.manifest.tokenizer.bos_id
        try:
            rows = Decoded(self._stream(shard), self.seq_len, self.packing, bos_id)
        except ValueError as error:
            raise DataError(f"shard {where}: {error}", remedy) from error
        if len(rows) != self.counts[number]:
            raise DataError(
                f"shard {where} makes {len(rows)} rows, {LENGTHS} says {self.counts[number]}",
                "run `gchat data lengths` on the local folder, and upload it again",
            )
        return rows

    def _stream(self, shard: ShardInfo) -> Stream:
        """One shard's documents, from the cache or from where they lie."""
        where = storage.join(self.data_dir, shard.name)
        try:
            if self.cache is None:
                return read_shard(self.data_dir, shard, self.manifest)
            for again in (True, False):
                with self.cache.open(shard) as path:
                    try:
                        return read_shard_file(path, where, shard, self.manifest)
                    except DataError:
                        self.cache.drop(shard)  # it was sound when it was put there
                        if not again:
                            raise
            raise AssertionError("unreachable")
        except DataError as error:
            raise self._since_changed(error) from error

    def _since_changed(self, error: DataError) -> DataError:
        """An error that says so where the data set was replaced meanwhile; else `error` itself."""
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

    def gather(self, row_ids: np.ndarray) -> Batch:
        """Rows [B] by their ids as a batch [B, T]; `split` rows have no positions and segments."""
        places = _places(row_ids, self.offsets)
        return assemble(*places, self._shards.get, self.seq_len, self.packing)

    def metrics(self) -> dict[str, float]:
        """Figures of the shard cache since this was last asked; empty for local data."""
        return self.cache.take() if self.cache is not None else {}

    def close(self) -> None:
        """Lets go of the shards and the background threads, also where they wait for a bucket."""
        self._shards.close()


def _places(row_ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Part and row in it [B] of row ids, of which part i holds those from offsets[i] on."""
    part_B = np.searchsorted(offsets, row_ids, side="right") - 1
    return part_B, row_ids - offsets[part_B]


def assemble(
    part_B: np.ndarray,
    row_B: np.ndarray,
    part: Callable[[int], "Decoded | TokenRows"],
    seq_len: int,
    packing: Packing,
) -> Batch:
    """One batch from several parts: row `row_B` of part `part_B` in each place."""
    inputs, targets = (np.empty((len(row_B), seq_len), np.int32) for _ in range(2))
    whole = Batch(inputs, targets)
    if packing != "split":
        whole = Batch(inputs, targets, np.empty_like(inputs), np.empty_like(inputs))
    for number in sorted(set(part_B.tolist())):
        here = part_B == number
        rows = part(number).gather(row_B[here])
        for array, values in zip(whole[:4], rows[:4], strict=True):  # prepared rows have no more
            if array is not None:
                array[here] = values
    return whole


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
        self.seq_len = self._rows[0].seq_len
        self.packing: Packing = self._rows[0].packing
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

    def gather(self, row_ids: np.ndarray) -> Batch:
        """Rows [B] by their ids as a batch [B, T], as TokenRows gives them."""
        places = _places(row_ids, self.offsets)
        return assemble(*places, self._rows.__getitem__, self.seq_len, self.packing)

    @property
    def cut_documents(self) -> int:
        """Documents of all sources that are longer than a row."""
        return sum(rows.cut_documents for rows in self._rows)

    @property
    def tokens_per_row(self) -> float:
        """Mean tokens of text in a row, over all rows (not by weight)."""
        tokens = sum(rows.tokens_per_row * len(rows) for rows in self._rows)
        return tokens / max(1, len(self))

    def prefetch(self, shards: list[tuple[int, int]]) -> None:
        """Begins to read (source, shard) pairs in the background."""
        for source, shard in shards:
            self._rows[source].prefetch([shard])

    def metrics(self) -> dict[str, float]:
        """Sums of the shard caches' figures since this was last asked."""
        total: collections.Counter[str] = collections.Counter()
        for rows in self._rows:
            total.update(rows.metrics())
        return dict(total)

    def close(self) -> None:
        """Lets go of every source."""
        for rows in self._rows:
            rows.close()

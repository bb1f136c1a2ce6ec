"""The two passes from documents to shards; each task leaves a marker, so nothing is done twice.

Pass 1 (`Encode`, one task per unit): documents are tokenized and written to runs, sorted by bucket.
Pass 2 (`Shuffle`, one task per shard): a few buckets at a time are read from all runs, put in
their final order and written. Memory: one run of tokens per process in the first pass, one bucket
in the second, whatever the size of the corpus.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gaia import storage
from gaia.data.manifest import SPLITS, ShardInfo
from gaia.data.shards import TRAIN_NAME, VAL_NAME, ShardWriter
from gaia.work_folder import WorkFolder
from gchat.data import buckets, pool
from gchat.data.progress import progress_bar
from gchat.data.sources.unit import Corpus, Tally, Unit
from gchat.tokenizer import Tokenizer

_RUN_TOKENS = 32 << 20  # tokens held by one process in the first pass: 64 MiB of uint16
_GROUP_NAME = "group-{group:05d}-{{index:05d}}.arrayrecord"
_VAL = -1  # the group of the validation split
LEARNED = np.uint32(1 << 31)
"""Bit of an id in a run of data with loss masks: the token is learned."""


def position(document: str) -> float:
    """The document's text as a number in [0, 1) that is the same everywhere."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@dataclasses.dataclass(frozen=True)
class Encode:
    """The first pass over one unit: (number, unit) to runs and a record of what was in it."""

    scratch: Path
    """Folder of runs and markers."""
    tokenizer: Tokenizer
    seed: int
    val_fraction: float
    buckets: int
    max_bad: int = 0
    run_tokens: int = _RUN_TOKENS
    masked: ClassVar[bool] = False
    """Runs hold loss masks (LEARNED), as uint32."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of ids in runs."""
        return np.dtype(np.uint32) if self.masked else self.tokenizer.info.dtype

    def encoded(self, document: str) -> Iterable[np.ndarray]:
        """Ids of a document with its BOS, in `dtype`; several where it becomes several."""
        ids = self.tokenizer.encode_array(document)
        whole = np.empty(len(ids) + 1, self.dtype)
        whole[0], whole[1:] = self.tokenizer.bos_id, ids
        return (whole,)

    def counts(self) -> dict[str, Any]:
        """Further figures for the record of a unit."""
        return {}

    def marker(self, index: int) -> Path:
        """Says that a unit is done, and what it held."""
        return self.scratch / f"unit-{index:06d}.json"

    def __call__(self, task: tuple[int, Unit]) -> dict[str, Any]:
        """Does one unit; returns what the marker holds."""
        index, unit = task
        tally = Tally(max_bad=self.max_bad)
        held = _Held(self, index)
        for document in unit.documents(tally):
            held.add(document, unit.split)
        held.write()
        record = {
            "runs": held.runs,
            "documents": held.documents,
            "text_bytes": held.text_bytes,
            "lowest": None if held.lowest is None else list(held.lowest),
            **tally.counts(),
            **self.counts(),
            "name": unit.name,
        }
        storage.write_text(self.marker(index), json.dumps(record))
        return record


class _Held:
    """Documents of one unit that wait to be written as a run."""

    def __init__(self, job: Encode, index: int) -> None:
        self.job = job
        self.index = index
        self.runs: list[str] = []
        self.documents = dict.fromkeys(SPLITS, 0)
        self.text_bytes = dict.fromkeys(SPLITS, 0)
        self.lowest: tuple[float, int, int] | None = None
        """Hash, number and bytes of the training document that is next to become validation."""
        self._first = 0  # number of the first document held
        self._fill = 0
        self._lengths: list[int] = []
        self._is_val: list[bool] = []
        self._tokens = np.empty(0, job.dtype)

    def add(self, document: str, split: str | None) -> None:
        """Tokenizes a document; its split follows from its hash unless it is given."""
        text_bytes = len(document) if document.isascii() else len(document.encode())
        at = position(document) if split is None else None
        is_val = split == "val" if at is None else at < self.job.val_fraction
        for whole in self.job.encoded(document):
            self._hold(whole)
            if at is not None and not is_val and (self.lowest is None or at < self.lowest[0]):
                self.lowest = (at, self._first + len(self._lengths), text_bytes)
            name = SPLITS[is_val]
            self.documents[name] += 1
            self.text_bytes[name] += text_bytes
            self._lengths.append(len(whole))
            self._is_val.append(is_val)
            text_bytes = 0  # is that of the first where a document becomes several

    def _hold(self, whole: np.ndarray) -> None:
        """Keeps ids, after writing those held where there is no more room."""
        if self._fill + len(whole) > self.job.run_tokens and self._lengths:
            self.write()
        needed = self._fill + len(whole)
        if needed > len(self._tokens):
            self._grow(needed)
        self._tokens[self._fill : needed] = whole
        self._fill = needed

    def _grow(self, needed: int) -> None:
        size = max(needed, min(self.job.run_tokens, max(1 << 20, 2 * len(self._tokens))))
        grown = np.empty(size, self._tokens.dtype)
        grown[: self._fill] = self._tokens[: self._fill]
        self._tokens = grown

    def write(self) -> None:
        """Writes what is held as one run."""
        count = len(self._lengths)
        if not count:
            return
        name = f"unit-{self.index:06d}-{len(self.runs):04d}.run"
        buckets.write_run(
            self.job.scratch / name,
            buckets.Documents(
                tokens=self._tokens[: self._fill],
                lengths=np.array(self._lengths, "<u4"),
                keys=buckets.keys(self.job.seed, self.index, count, self._first),
            ),
            np.array(self._is_val),
            self.job.buckets,
        )
        self.runs.append(name)
        self._first += count
        self._fill = 0
        self._lengths = []
        self._is_val = []


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """The second pass over one group of buckets: (group, first bucket, end, shards) to shards."""

    scratch: Path
    """Folder of markers, and of the shards until they are named."""
    runs: Sequence[buckets.Run]
    dtype: np.dtype
    buckets: int
    promoted: int | None
    """Key of a training document that goes to the validation split, which would be empty."""
    masked: bool = False
    """Runs hold loss masks (LEARNED), as uint32."""

    @property
    def run_dtype(self) -> np.dtype:
        """Dtype of ids in runs."""
        return np.dtype(np.uint32) if self.masked else self.dtype

    def marker(self, group: int) -> Path:
        """Says that a group is done, and which shards it gave."""
        return self.scratch / f"group-{'val' if group == _VAL else f'{group:06d}'}.json"

    def __call__(self, task: tuple[int, int, int, int]) -> list[dict[str, Any]]:
        """Does one group; returns its shards."""
        group, first, end, limit = task
        options: dict[str, Any] = {"name": VAL_NAME, "shard_tokens": None}
        if group != _VAL:
            options = {"name": _GROUP_NAME.format(group=group), "shard_tokens": limit}
        options["masked"] = self.masked
        with ShardWriter(self.scratch, dtype=self.dtype, **options) as writer:
            for bucket in range(first, end):
                for document in self._bucket(bucket, val=group == _VAL):
                    if self.masked:
                        writer.add(document & ~LEARNED, document >= LEARNED)
                    else:
                        writer.add(document)
        shards = [dataclasses.asdict(shard) for shard in writer.shards]
        storage.write_text(self.marker(group), json.dumps(shards))
        return shards

    def _bucket(self, bucket: int, val: bool) -> Iterator[np.ndarray]:
        if val and self.promoted is not None:
            documents = buckets.read_segment(self.runs, bucket)
            yield from _chosen(documents, documents.keys == np.uint64(self.promoted))
            return
        documents = buckets.read_segment(self.runs, bucket + self.buckets * val)
        if self.promoted is None:
            yield from documents.in_order()
        else:
            yield from _chosen(documents, documents.keys != np.uint64(self.promoted))


def _chosen(documents: buckets.Documents, mask: np.ndarray) -> Iterator[np.ndarray]:
    """The documents of a mask, in order."""
    tokens = documents.tokens[np.repeat(mask, documents.lengths)]
    yield from buckets.Documents(tokens, documents.lengths[mask], documents.keys[mask]).in_order()


def encode(
    job: Encode, corpus: Corpus, workers: int, progress: bool | None
) -> list[dict[str, Any]]:
    """Runs the first pass over the units that are not done; returns the record of every unit."""
    records: dict[int, dict[str, Any]] = {}
    for index in range(len(corpus.units)):
        if job.marker(index).exists():
            records[index] = json.loads(storage.read_text(job.marker(index)))
    todo = [(i, unit) for i, unit in enumerate(corpus.units) if i not in records]
    sizes = [unit.text_bytes for _, unit in todo]
    total = sum(s for s in sizes if s) if all(sizes) else None
    with progress_bar("tokenize", total, progress) as bar:

        def done(task: tuple[int, Unit], result: dict[str, Any]) -> None:
            records[task[0]] = result
            bar.update(task[1].text_bytes or sum(result["text_bytes"].values()))

        pool.run(job, _fetched(todo), min(workers, len(todo)), done)
    return [records[index] for index in range(len(corpus.units))]


def _fetched(todo: Sequence[tuple[int, Unit]]) -> Iterator[tuple[int, Unit]]:
    for index, unit in todo:
        if unit.fetch is not None:
            unit.fetch()
            unit = dataclasses.replace(unit, fetch=None)
        yield index, unit


def shuffle(
    job: Shuffle, place: WorkFolder, shard_tokens: int, workers: int, progress: bool | None
) -> dict[str, list[ShardInfo]]:
    """Runs the second pass and puts the shards in place; "train" and "val" in order."""
    tasks = [*_groups(job, shard_tokens), (_VAL, 0, job.buckets, 0)]
    shards_of: dict[int, list[dict[str, Any]]] = {}
    for group, *_ in tasks:
        if job.marker(group).exists():
            shards_of[group] = json.loads(storage.read_text(job.marker(group)))
    todo = [task for task in tasks if task[0] not in shards_of]
    with progress_bar("shuffle", len(todo), progress, " shards") as bar:

        def done(task: tuple[int, int, int, int], result: list[dict[str, Any]]) -> None:
            shards_of[task[0]] = result
            bar.update(1)

        pool.run(job, todo, min(workers, len(todo)), done)
    val = shards_of.pop(_VAL)
    train = [shard for group in sorted(shards_of) for shard in shards_of[group]]
    names = [TRAIN_NAME.format(index=index) for index in range(len(train))]
    place.claim(*names, VAL_NAME)
    return {"train": _named(place, train, names), "val": _named(place, val, [VAL_NAME])}


def _groups(job: Shuffle, shard_tokens: int) -> Iterator[tuple[int, int, int, int]]:
    """Buckets to groups of about one shard each, all of nearly the same size."""
    tokens = sum((run.tokens_by_segment()[: job.buckets] for run in job.runs), np.zeros(1, int))
    ends = np.cumsum(tokens)
    total = int(ends[-1])
    count = max(1, -(-total // shard_tokens))
    # Python's integers: total * count may pass 2**53.
    edges = [int(np.searchsorted(ends, total * (i + 1) // count)) + 1 for i in range(count)]
    edges[-1] = job.buckets
    first = group = 0
    for end in sorted(set(edges)):
        size = int(ends[end - 1] - (ends[first - 1] if first else 0))
        if size:  # a bucket larger than a shard is cut into several
            yield group, first, end, -(-size // max(1, round(size / shard_tokens)))
            group += 1
        first = end


def _named(
    place: WorkFolder, shards: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[ShardInfo]:
    """Moves shards from the scratch folder to their names in the data set."""
    named = []
    for shard, name in zip(shards, names, strict=True):
        if (place.scratch / shard["name"]).exists():  # else an interrupted run has moved it
            (place.scratch / shard["name"]).rename(place.folder / name)
        named.append(dataclasses.replace(ShardInfo(**shard), name=name))
    return named

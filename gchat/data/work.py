"""Documents to shards, unit by unit, so that an interruption repeats one unit at most."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gaia import storage
from gaia.manifest import ShardInfo
from gaia.records import permutation
from gaia.shards import ShardWriter
from gchat.data.sources.unit import Corpus, Tally, Unit
from gchat.tokenizer import Tokenizer

STATE = ".prepare.json"
_VAL_PART = ".val-{index:05d}.arrayrecord"
_SHUFFLE_BYTES = 128 << 20  # text shuffled at a time; twice that is in memory
_ENCODED = 512  # documents encoded at a time


@dataclasses.dataclass
class State:
    """What an interrupted preparation leaves: the units done and their shards."""

    parameters: dict[str, Any]
    done: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes `.prepare.json` atomically."""
        storage.write_text(folder / STATE, json.dumps(dataclasses.asdict(self), indent=1))

    def shards(self, key: str) -> list[ShardInfo]:
        """Shards of the finished units in order; key is "train" or "val"."""
        return [ShardInfo(**shard) for unit in self.done.values() for shard in unit[key]]

    def total(self, key: str, split: str | None = None) -> int:
        """Sum over the finished units of "documents", "text_bytes" or "invalid_utf8"."""
        values = [unit[key] for unit in self.done.values()]
        return sum(v if split is None else v[split] for v in values)


def position(document: str) -> float:
    """The document's text as a number in [0, 1) that is the same everywhere."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def progress_bar(label: str, total: int | None, progress: bool | None) -> tqdm:
    """A bar in bytes of text with rate and time left."""
    # tqdm's None hides the bar where stderr is no terminal: logs stay readable.
    hidden = None if progress is None else not progress
    return tqdm(desc=label, total=total, unit="B", unit_scale=True, disable=hidden)


@dataclasses.dataclass
class Work:
    """Turns units into shards."""

    folder: Path
    tokenizer: Tokenizer
    state: State
    seed: int
    val_fraction: float
    shard_tokens: int
    threads: int
    progress: bool | None

    def run(self, corpus: Corpus) -> None:
        """Does the units that are not done yet."""
        todo = [u for u in corpus.units if u.name not in self.state.done]
        sizes = [unit.text_bytes for unit in todo]
        total = sum(s for s in sizes if s) if all(sizes) else None
        with progress_bar("tokenize", total, self.progress) as bar:
            for index, unit in enumerate(corpus.units):
                if unit.name not in self.state.done:
                    self.state.done[unit.name] = self._unit(index, unit, bar)
                    self.state.save(self.folder)

    def _unit(self, index: int, unit: Unit, bar: tqdm) -> dict[str, Any]:
        tally = Tally()
        documents = {"train": 0, "val": 0}
        text_bytes = {"train": 0, "val": 0}
        dtype = self.tokenizer.info.dtype
        writers = {
            "train": ShardWriter(
                self.folder,
                dtype=dtype,
                first_index=len(self.state.shards("train")),
                shard_tokens=self.shard_tokens,
            ),
            "val": ShardWriter(
                self.folder, dtype=dtype, name=_VAL_PART.format(index=index), shard_tokens=None
            ),
        }
        with writers["train"], writers["val"]:
            for number, buffer in enumerate(_buffers(unit.documents(tally))):
                needs_val = unit.split is None and index == number == 0
                splits = self._splits(buffer, unit.split, needs_val)
                order = permutation(len(buffer), self.seed, index, number).tolist()
                for first in range(0, len(order), _ENCODED):
                    chosen = order[first : first + _ENCODED]
                    texts = [buffer[i] for i in chosen]
                    sizes = [len(t) if t.isascii() else len(t.encode()) for t in texts]
                    for i, size, ids in zip(chosen, sizes, self._encode(texts), strict=True):
                        writers[splits[i]].add(ids)
                        documents[splits[i]] += 1
                        text_bytes[splits[i]] += size
                    bar.update(sum(sizes))
        return {
            **{key: [dataclasses.asdict(s) for s in w.shards] for key, w in writers.items()},
            "documents": documents,
            "text_bytes": text_bytes,
            "invalid_utf8": tally.invalid_utf8,
        }

    def _splits(self, buffer: list[str], given: str | None, needs_val: bool) -> list[str]:
        """The split of each document."""
        if given is not None:
            return [given] * len(buffer)
        hashes = [position(document) for document in buffer]
        limit = self.val_fraction
        if needs_val and min(hashes) >= limit:
            limit = np.nextafter(min(hashes), 1.0)
        return ["val" if h < limit else "train" for h in hashes]

    def _encode(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Ids of each text, BOS first."""
        for ids in self.tokenizer.encode_batch(texts, self.threads):
            document = np.empty(len(ids) + 1, ids.dtype)
            document[0] = self.tokenizer.bos_id
            document[1:] = ids
            yield document


def _buffers(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents in groups that are shuffled in memory."""
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= _SHUFFLE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group

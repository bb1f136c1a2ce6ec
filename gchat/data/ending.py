"""The end of a preparation: shards out of what the first pass left, files beside them, manifest.

Text (`prepare`) and conversations (`chats`) end alike; the manifest is written last.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gaia.data.lengths import LENGTHS, write_lengths
from gaia.data.manifest import (
    MANIFEST,
    SPLITS,
    Manifest,
    ShardInfo,
    load_manifest,
    write_manifest,
)
from gaia.data.shards import WINDOW, read_shard
from gaia.errors import DataError
from gaia.work_folder import WorkFolder, refuse_difference, unfinished
from gchat import tokenizer as tokenizers
from gchat.data import buckets, work
from gchat.data.sources.unit import Corpus
from gchat.tokenizer import Tokenizer

WHAT = "a data set"
TOKEN_BYTES = "token_bytes.npy"
SHARD_NAMES = re.compile(r"tokens-\d{5,}\.arrayrecord|test-tokens\.arrayrecord")
# Parameters that older data sets lack; a finished one is taken all the same.
_ADDED = ("buckets",)

Shards = dict[str, list[ShardInfo]]
"""Shards of each split, in their order."""


def shuffled(
    first: work.Encode, place: WorkFolder, units: list[dict[str, Any]], shard_tokens: int,
    workers: int, progress: bool | None, remedy: str,
) -> Shards:  # fmt: skip
    """Runs the second pass over what the first one left.

    Args:
        first: the first pass.
        place: where the work is done.
        units: records of the first pass.
        shard_tokens: size of a shard, about.
        workers: processes.
        progress: show a bar; None shows it on a terminal.
        remedy: of the error.

    Raises:
        DataError: a split would be empty.
    """
    promoted = _promote(first.seed, place, units, remedy)
    runs = [buckets.Run(place.scratch / name, first.dtype) for u in units for name in u["runs"]]
    dtype = first.tokenizer.info.dtype
    second = work.Shuffle(place.scratch, runs, dtype, first.buckets, promoted, masked=first.masked)
    return work.shuffle(second, place, shard_tokens, workers, progress)


def finish(
    first: work.Encode, corpus: Corpus, place: WorkFolder, units: Sequence[dict[str, Any]],
    shards: Shards, *, parameters: dict[str, Any], window: int = WINDOW,
) -> Manifest:  # fmt: skip
    """Writes what lies beside the shards, the manifest last, and ends the work.

    Args:
        first: the first pass.
        corpus: that was prepared.
        place: where the work is done.
        units: records of the first pass.
        shards: of both splits, in their places.
        parameters: everything that decides the bytes.
        window: shards that the loader shuffles together.
    """
    folder, tokenizer = place.folder, first.tokenizer
    _write_token_bytes(folder, tokenizer)
    manifest = Manifest(
        tokenizer=tokenizer.info,
        train=tuple(shards["train"]),
        val=tuple(shards["val"]),
        documents=_total(units, "documents"),
        text_bytes=_total(units, "text_bytes"),
        sources=corpus.sources,
        invalid_utf8=sum(unit["invalid_utf8"] for unit in units),
        dtype=tokenizer.info.dtype.name,
        window=window,
        parameters=parameters,
        learned=dict.fromkeys(SPLITS, 0) if first.masked else None,
    )
    if first.masked:
        manifest = replace(manifest, learned=_learned(folder, manifest))
    write_lengths(folder, manifest)
    write_manifest(folder, manifest)
    place.finish()
    return manifest


def _learned(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Ids of each split that are learned."""
    counted: dict[str, int] = {}
    for split in SPLITS:
        streams = (read_shard(folder, shard, manifest) for shard in manifest.shards(split))
        masks = (stream.mask_N for stream in streams)
        counted[split] = sum(int(mask_N.sum()) for mask_N in masks if mask_N is not None)
    return counted


def _write_token_bytes(folder: Path, encoder: Tokenizer) -> None:
    """Writes the table of bytes for each id beside the shards."""
    array = io.BytesIO()
    np.save(array, encoder.token_bytes())
    storage.write_bytes(folder / TOKEN_BYTES, array.getvalue())


def _total(units: Sequence[dict[str, Any]], key: str) -> dict[str, int]:
    """Sums a figure of the units by split."""
    return {split: sum(unit[key][split] for unit in units) for split in ("train", "val")}


def _promote(seed: int, place: WorkFolder, units: list[dict[str, Any]], remedy: str) -> int | None:
    """Key of the document that becomes validation where the hashes chose none.

    Args:
        seed: of the shuffle.
        place: where the work is done.
        units: records of the first pass; those that change are replaced.
        remedy: of the error.

    Raises:
        DataError: a split would be empty all the same.
    """
    documents = _total(units, "documents")
    chosen = min(
        ((u["lowest"], i) for i, u in enumerate(units) if u["lowest"] is not None), default=None
    )
    key = None
    if not documents["val"] and chosen is not None:
        (_, number, text_bytes), index = chosen
        key = int(buckets.keys(seed, index, 1, number)[0])
        for what, amount in (("documents", 1), ("text_bytes", text_bytes)):
            train = units[index][what]["train"] - amount
            units[index] = units[index] | {what: {"train": train, "val": amount}}
        documents = _total(units, "documents")
    if documents["train"] and documents["val"]:
        return key
    for unit in place.scratch.glob("unit-*.json"):  # nothing here is worth keeping
        unit.unlink()
    raise DataError(
        f"the input gave {documents['train']} training and {documents['val']} validation documents",
        remedy,
    )


def names_of(folder: Path) -> list[str]:
    """Names the files of the finished data set in a folder; none where there is no such set."""
    if not (folder / MANIFEST).exists():
        return []
    shards = [name for name in storage.list_names(folder) if SHARD_NAMES.fullmatch(name)]
    return [MANIFEST, LENGTHS, TOKEN_BYTES, tokenizers.FILE, *shards]


def previous_parameters(folder: Path, work: str) -> dict[str, Any]:
    """Parameters of what `folder` holds, finished or not; empty where it holds nothing."""
    if (folder / MANIFEST).exists():
        return load_manifest(folder).parameters
    return unfinished(folder, work)


def finished_set(folder: Path, parameters: dict[str, Any]) -> Manifest | None:
    """The manifest in `folder` when it was made with these parameters and all shards are there."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    added = {key: parameters[key] for key in _ADDED}
    refuse_difference(folder, added | manifest.parameters, parameters, WHAT)
    for shard in manifest.train + manifest.val:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(
                f"shard {path} is missing or has another size than its manifest says",
                "prepare again with --overwrite",
            )
    if not (folder / LENGTHS).exists():  # prepared before there was packing
        write_lengths(folder, manifest)
    return manifest

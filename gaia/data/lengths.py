"""lengths.npz: how often each document length occurs in each training shard.

Packed rows are counted from it before any shard is read, so that the order of rows of data that is
streamed is known from the first step on (gaia.data.packing). It lies beside the manifest:

    length, count   uint32: a length, and how many documents of the shard have it; ascending
    ends            int64 [shards]: where each shard's part of these two ends
    crc32c          the shards' checksums, by which it is told that it belongs to this manifest

About 5 KB for a shard of 64M tokens.
"""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaia import storage
from gaia.data.manifest import Manifest, ShardInfo
from gaia.data.shards import read_shard
from gaia.errors import DataError

LENGTHS = "lengths.npz"


class Lengths(NamedTuple):
    """Lengths of the documents of one shard, and how many have each; both int64 [lengths]."""

    length: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


def write_lengths(folder: str | Path, manifest: Manifest, *, threads: int = 4) -> None:
    """Reads every training shard of a local data set and writes its lengths.npz.

    Args:
        folder: where the shards lie; the manifest itself need not be there yet.
        manifest: which shards.
        threads: shards read at a time; each is in memory while it is counted.

    Raises:
        DataError: a shard is damaged or missing.
    """

    def count(shard: ShardInfo) -> tuple[np.ndarray, np.ndarray]:
        stream = read_shard(folder, shard, manifest)
        lengths = np.diff(np.append(stream.starts, len(stream.tokens_N)))
        return np.unique(lengths, return_counts=True)

    with ThreadPoolExecutor(threads, thread_name_prefix="gaia-lengths") as pool:
        counted = list(pool.map(count, manifest.train))
    array = io.BytesIO()
    np.savez_compressed(
        array,
        length=np.concatenate([length for length, _ in counted]).astype("<u4"),
        count=np.concatenate([counts for _, counts in counted]).astype("<u4"),
        ends=np.cumsum([len(length) for length, _ in counted]).astype("<i8"),
        crc32c=np.array([shard.crc32c for shard in manifest.train]),
    )
    storage.write_bytes(storage.join(folder, LENGTHS), array.getvalue())


def read_lengths(data_dir: str | Path, manifest: Manifest) -> list[Lengths]:
    """The lengths of each training shard.

    Raises:
        DataError: there is no lengths.npz, or it is damaged or of other shards.
    """
    where = storage.join(data_dir, LENGTHS)
    remedy = f"run `gchat data lengths` on the local folder of {data_dir}"
    if storage.is_remote(data_dir):
        remedy += ", then `gchat data upload` again"
    if not storage.exists(where):
        raise DataError(f"{where} does not exist, and packed rows are counted from it", remedy)
    try:
        with np.load(io.BytesIO(storage.read_bytes(where)), allow_pickle=False) as file:
            length, count, ends = (file[n].astype(np.int64) for n in ("length", "count", "ends"))
            of = file["crc32c"].tolist()
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{where} is damaged ({error})", remedy) from error
    if of != [shard.crc32c for shard in manifest.train] or len(ends) != len(of):
        raise DataError(f"{where} belongs to other shards than the manifest beside it", remedy)
    cuts = ends[:-1].tolist()
    return [
        Lengths(*parts) for parts in zip(np.split(length, cuts), np.split(count, cuts), strict=True)
    ]

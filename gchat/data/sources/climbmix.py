"""ClimbMix from the Hugging Face hub, in nanochat's layout of shards.

`karpathy/climbmix-400b-shuffle` holds 6,543 parquet files `shard_00000.parquet` … of about 100 MB
(250 million characters, one column `text`), already shuffled. The last one is the validation
split; training takes the first n. The revision is resolved to a commit once and pinned, so that
shards fetched on different days belong together.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from gaia import storage
from gaia.errors import ConfigError
from gchat.data.sources import hub, text
from gchat.data.sources.unit import Corpus, Tally, Unit

REPOSITORY = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542  # the validation split
SHARD_TEXT_BYTES = 250_000_000  # about; for the progress bar


def shard_name(index: int) -> str:
    """File name of a shard, as nanochat has it."""
    return f"shard_{index:05d}.parquet"


def corpus(
    shards: int,
    *,
    revision: str = "main",
    cache: Path | None = None,
    ahead: int = 4,
    keep: bool = True,
) -> Corpus:
    """The first `shards` training shards and the validation shard; nothing is downloaded yet.

    Args:
        shards: training shards, -1 for all 6,542.
        revision: branch, tag or commit; pinned to the commit it names now.
        cache: folder for the parquet files, default `$GAIA_HOME/climbmix`.
        ahead: downloads that run while a shard is tokenized.
        keep: keep a parquet file after its documents were read.

    Raises:
        ConfigError: shards out of range.
        DataError: the hub cannot be reached and the revision is not a full commit.
    """
    count = LAST_SHARD if shards == -1 else shards
    if not 1 <= count <= LAST_SHARD:
        raise ConfigError(f"shards = {shards} is out of range", f"use 1 to {LAST_SHARD}, or -1")
    folder = cache or storage.home() / "climbmix"
    commit = hub.pinned(REPOSITORY, revision, shard_name(LAST_SHARD))
    indices = [*range(count), LAST_SHARD]
    names = [shard_name(index) for index in indices]
    files = hub.Files(REPOSITORY, folder / commit, commit, names, ahead, keep)
    units = [
        Unit(
            name=name,
            documents=_Reader(files, place),
            fetch=functools.partial(files.path, place),
            text_bytes=SHARD_TEXT_BYTES,
            split="val" if index == LAST_SHARD else "train",
        )
        for place, (index, name) in enumerate(zip(indices, names, strict=True))
    ]
    return Corpus(
        units=units,
        sources=(f"{REPOSITORY}@{commit} shards 0-{count - 1} and {LAST_SHARD} (validation)",),
        identity={"repository": REPOSITORY, "revision": commit, "shards": count},
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The documents of one shard."""

    files: hub.Files
    place: int

    def __call__(self, _: Tally) -> Iterator[str]:
        path = self.files.path(self.place)
        yield from text.parquet(path, "text")
        self.files.done(path)

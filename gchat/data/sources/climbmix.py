"""ClimbMix from the Hugging Face hub, in nanochat's layout of shards.

`karpathy/climbmix-400b-shuffle` holds 6,543 parquet files `shard_00000.parquet` … of about 100 MB
(250 million characters, one column `text`), already shuffled. The last one is the validation
split; training takes the first n. The revision is resolved to a commit once and pinned, so that
shards fetched on different days belong together.

The hub client resumes a broken download but checks only its size: a flipped byte passes. So the
SHA-256 of each file is compared with the one that the hub publishes for it (its ETag).
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.data.sources import text
from gchat.data.sources.unit import Corpus, Tally, Unit

REPOSITORY = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542  # the validation split
SHARD_TEXT_BYTES = 250_000_000  # about; for the progress bar
TRIES = 5
WAIT_S = 1.0  # before the second attempt; doubles for each further one
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    commit = _commit(revision)
    hub = _Hub(folder / commit, commit, [*range(count), LAST_SHARD], ahead, keep)
    units = [
        Unit(
            name=shard_name(index),
            documents=_Reader(hub, index),
            fetch=functools.partial(hub.path, index),
            text_bytes=SHARD_TEXT_BYTES,
            split="val" if index == LAST_SHARD else "train",
        )
        for index in hub.indices
    ]
    return Corpus(
        units=units,
        sources=(f"{REPOSITORY}@{commit} shards 0-{count - 1} and {LAST_SHARD} (validation)",),
        identity={"repository": REPOSITORY, "revision": commit, "shards": count},
    )


class _Hub:
    """Downloads shards ahead of the one that is read."""

    def __init__(
        self, folder: Path, commit: str, indices: list[int], ahead: int, keep: bool
    ) -> None:
        self.indices = indices
        self.keep = keep
        self._folder = folder
        self._commit = commit
        self._ahead = max(1, ahead)
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: dict[int, concurrent.futures.Future[Path]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without its threads: a worker process finds the file that the main one fetched."""
        return self.__dict__ | {"_pool": None, "_pending": {}}

    def path(self, index: int) -> Path:
        """The file of one shard; the next ones begin to download when it is asked for."""
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._ahead, "gaia-hub")
        at = self.indices.index(index)
        upcoming = self.indices[at : at + self._ahead] if self._leads else [index]
        for other in upcoming:
            if other not in self._pending:
                self._pending[other] = self._pool.submit(
                    fetch, shard_name(other), self._commit, self._folder
                )
        try:
            return self._pending.pop(index).result()
        except BaseException:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    @property
    def _leads(self) -> bool:
        """Only one process downloads ahead, or each would do so for all."""
        return multiprocessing.parent_process() is None


@dataclasses.dataclass(frozen=True)
class _Reader:
    """The documents of one shard."""

    hub: _Hub
    index: int

    def __call__(self, _: Tally) -> Iterator[str]:
        path = self.hub.path(self.index)
        yield from text.parquet(path, "text")
        if not self.hub.keep:
            path.unlink()
            _marker(path).unlink(missing_ok=True)


def fetch(name: str, commit: str, folder: Path) -> Path:
    """One verified file of the repository at `folder/name`, downloaded unless it is there.

    Raises:
        DataError: the hub is not reachable, lacks the file, or keeps sending damaged bytes.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    path = folder / name
    if path.exists() and _marker(path).exists():
        return path
    problem = ""
    damaged = False
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        try:
            etag = _metadata(name, commit).etag or ""
            huggingface_hub.hf_hub_download(
                REPOSITORY,
                name,
                repo_type="dataset",
                revision=commit,
                local_dir=folder,
                endpoint=_endpoint(),
                force_download=damaged,  # the client would take a damaged file for a finished one
            )
        except (EntryNotFoundError, RepositoryNotFoundError) as error:
            raise DataError(f"{REPOSITORY}@{commit} has no {name}", "check --revision") from error
        except Exception as error:  # the client raises what its HTTP library does
            problem = _first_line(error)
            continue
        # Files outside LFS have another kind of ETag; ClimbMix has none of those.
        if not _SHA256.fullmatch(etag) or (actual := storage.sha256_file(path)) == etag:
            storage.write_text(_marker(path), etag)
            return path
        problem = f"sha256 {actual[:12]}… is not the published {etag[:12]}…"
        damaged = True
        path.unlink()
    raise DataError(
        f"{name} could not be downloaded in {TRIES} attempts ({problem})",
        "try again: finished files are kept",
    )


def _marker(path: Path) -> Path:
    """Says that the file beside it was compared with its published SHA-256."""
    return path.with_name(f".{path.name}.sha256")


def _commit(revision: str) -> str:
    """The commit that a branch or tag names now."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        return _metadata(shard_name(LAST_SHARD), revision).commit_hash
    except Exception as error:  # the client raises what its HTTP library does
        raise DataError(
            f"the hub does not answer for {REPOSITORY} at {revision!r} ({_first_line(error)})",
            "check the network, or take the offline corpus (`--offline`, `--source docs`)",
        ) from error


def _metadata(name: str, revision: str) -> Any:
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(
        REPOSITORY, name, repo_type="dataset", revision=revision, endpoint=_endpoint()
    )
    return huggingface_hub.get_hf_file_metadata(url)


def _endpoint() -> str | None:
    """`HF_ENDPOINT` as it is now (the client itself looks only once, when it is imported)."""
    return os.environ.get("HF_ENDPOINT")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

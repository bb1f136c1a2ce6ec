"""Files of data sets on the Hugging Face hub: pinned to a commit, verified, fetched ahead.

    fineweb | fineweb-edu            their samples of 10 billion tokens
    hf://ORG/NAME[/FOLDER]           the .parquet and .jsonl files of a data set, in order of name

The hub client resumes a broken download but checks only its size: a flipped byte passes. So the
SHA-256 of each file is compared with the one that the hub publishes for it (its ETag).
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.data.sources import files, text
from gchat.data.sources.unit import Corpus, Row, Tally, Unit

TRIES = 5
WAIT_S = 1.0  # before the second attempt; doubles for each further one
ALIASES = {
    "fineweb": "hf://HuggingFaceFW/fineweb/sample/10BT",
    "fineweb-edu": "hf://HuggingFaceFW/fineweb-edu/sample/10BT",
}
_ADDRESS = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:/(.+?))?/?")
_ENDINGS = (".parquet", ".jsonl")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LISTING = ".files.json"


def corpus(
    address: str,
    *,
    column: str = "text",
    shards: int = 8,
    revision: str = "main",
    cache: Path | None = None,
    ahead: int = 4,
    keep: bool = True,
) -> Corpus:
    """The first files of a data set; only their list is asked for yet.

    Args:
        address: `hf://ORG/NAME[/FOLDER]`, or a name of ALIASES.
        column: field that holds the text.
        shards: number of files, -1 for all.
        revision: branch, tag or commit; pinned to the commit it names now.
        cache: folder for the files, default `$GAIA_HOME/hub/ORG--NAME`.
        ahead: downloads that run while a file is tokenized.
        keep: keep a file after its documents were read.

    Raises:
        ConfigError: no such address, or shards out of range.
        DataError: the hub does not answer, or holds no such files.
    """
    match = _ADDRESS.fullmatch(ALIASES.get(address, address))
    if match is None:
        known = ", ".join(ALIASES)
        raise ConfigError(f"{address!r} is no data set of the hub", f"use {known}, hf://ORG/NAME")
    if shards < 1 and shards != -1:
        raise ConfigError(f"shards = {shards} is out of range", "use 1 or more, or -1 for all")
    repository, inside = match[1], match[2] or ""
    folder = cache or storage.home() / "hub" / repository.replace("/", "--")
    commit = pinned(repository, revision)
    names = listed(repository, commit, inside, folder / commit)
    chosen = names if shards == -1 else names[:shards]
    hub = Files(repository, folder / commit, commit, chosen, ahead, keep)
    units = [
        Unit(name, _Documents(hub, i, column), fetch=functools.partial(hub.path, i),
             rows=_Rows(hub, i, column))
        for i, name in enumerate(chosen)
    ]  # fmt: skip
    return Corpus(
        units=units,
        sources=(f"{repository}@{commit} {inside or '/'}: {len(chosen)} of {len(names)} files",),
        identity={
            "repository": repository,
            "folder": inside,
            "revision": commit,
            "shards": len(chosen),
            "text_column": column,
        },
    )


def listed(repository: str, commit: str, inside: str, folder: Path) -> list[str]:
    """Names of the files with text, sorted; asked for once for each commit."""
    kept = folder / f"{inside.replace('/', '--')}{_LISTING}"
    if kept.exists():
        return json.loads(storage.read_text(kept))
    import huggingface_hub

    try:
        entries = list(
            huggingface_hub.HfApi(endpoint=endpoint()).list_repo_tree(
                repository, inside or None, recursive=True, revision=commit, repo_type="dataset"
            )
        )
    except Exception as error:  # the client raises what its HTTP library does
        raise DataError(
            f"the hub does not list {repository} {inside} at {commit[:12]} ({first_line(error)})",
            "check the name, the folder and the network",
        ) from error
    names = sorted(e.path for e in entries if files.kind(Path(e.path)) in _ENDINGS)
    if not names:
        raise DataError(
            f"{repository} {inside} holds no {' or '.join(_ENDINGS)} file", "name another folder"
        )
    storage.write_text(kept, json.dumps(names))
    return names


class Files:
    """Downloads files ahead of the one that is read."""

    def __init__(
        self,
        repository: str,
        folder: Path,
        commit: str,
        names: Sequence[str],
        ahead: int,
        keep: bool,
    ) -> None:
        self.keep = keep
        self._repository, self._folder, self._commit = repository, folder, commit
        self._names = list(names)
        self._ahead = max(1, ahead)
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: dict[int, concurrent.futures.Future[Path]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without its threads: a worker process finds the file that the main one fetched."""
        return self.__dict__ | {"_pool": None, "_pending": {}}

    def path(self, place: int) -> Path:
        """One file, by its place in the list; the next ones begin to download meanwhile."""
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._ahead, "gaia-hub")
        # Only one process downloads ahead, or each would do so for all.
        leads = multiprocessing.parent_process() is None
        for other in range(place, min(place + (self._ahead if leads else 1), len(self._names))):
            if other not in self._pending:
                self._pending[other] = self._pool.submit(
                    fetch, self._repository, self._names[other], self._commit, self._folder
                )
        try:
            return self._pending.pop(place).result()
        except BaseException:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    def done(self, path: Path) -> None:
        """Lets go of a file whose documents were read."""
        if not self.keep:
            path.unlink()
            _marker(path).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The documents of one file with what it says about them."""

    hub: Files
    place: int
    column: str

    def __call__(self, tally: Tally) -> Iterator[Row]:
        path = self.hub.path(self.place)
        yield from text.rows(path, self.column, tally)
        self.hub.done(path)


@dataclasses.dataclass(frozen=True)
class _Documents:
    """The same documents as texts alone."""

    hub: Files
    place: int
    column: str

    def __call__(self, tally: Tally) -> Iterator[str]:
        return (row.text for row in _Rows(self.hub, self.place, self.column)(tally))


def fetch(repository: str, name: str, commit: str, folder: Path) -> Path:
    """One verified file of a repository at `folder/name`, downloaded unless it is there.

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
            etag = metadata(repository, name, commit).etag or ""
            huggingface_hub.hf_hub_download(
                repository,
                name,
                repo_type="dataset",
                revision=commit,
                local_dir=folder,
                endpoint=endpoint(),
                force_download=damaged,  # the client would take a damaged file for a finished one
            )
        except (EntryNotFoundError, RepositoryNotFoundError) as error:
            raise DataError(f"{repository}@{commit} has no {name}", "check --revision") from error
        except Exception as error:  # the client raises what its HTTP library does
            problem = first_line(error)
            continue
        # Files outside LFS have another kind of ETag.
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


def pinned(repository: str, revision: str, probe: str | None = None) -> str:
    """The commit that a branch or tag names now.

    Args:
        probe: a file of the repository, by which one request less is needed.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        if probe is not None:
            return metadata(repository, probe, revision).commit_hash
        import huggingface_hub

        api = huggingface_hub.HfApi(endpoint=endpoint())
        return str(api.dataset_info(repository, revision=revision).sha)
    except Exception as error:  # the client raises what its HTTP library does
        raise DataError(
            f"the hub does not answer for {repository} at {revision!r} ({first_line(error)})",
            "check the network, or take the offline corpus (`--offline`, `--source docs`)",
        ) from error


def metadata(repository: str, name: str, revision: str) -> Any:
    """Size, ETag and commit of a file, as the hub publishes them."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(
        repository, name, repo_type="dataset", revision=revision, endpoint=endpoint()
    )
    return huggingface_hub.get_hf_file_metadata(url)


def endpoint() -> str | None:
    """`HF_ENDPOINT` as it is now (the client itself looks only once, when it is imported)."""
    return os.environ.get("HF_ENDPOINT")


def first_line(error: Exception) -> str:
    """Kind and gist of an exception of the client."""
    return f"{type(error).__name__}: {error}".splitlines()[0]

"""manifest.json: the content of a data set, checked before any of its shards is opened."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gaia.errors import DataError

FORMAT = "gaia-tokens"
VERSION = 1  # of data whose tokens are all learned: plain text
MASKED_VERSION = 2  # of data whose shards hold loss masks
MANIFEST = "manifest.json"
SPLITS = ("train", "val")
CHUNK_TOKENS = 1 << 16
WINDOW = 4  # shards shuffled together; fixed when the data is prepared, or the order would change


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard file, as the manifest describes it."""

    name: str
    records: int
    tokens: int
    bytes: int
    """Size of the file."""
    crc32c: str
    """Checksum of the file, eight hex digits."""


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that made the ids (it lies beside the shards itself)."""

    kind: str
    sha256: str
    vocab_size: int
    """Ids in use, special tokens included."""
    padded_vocab_size: int
    """Rows of the embedding table: `vocab_size` rounded up to a multiple of 128."""
    bos_id: int
    """The id that begins every document."""

    @property
    def dtype(self) -> np.dtype:
        """uint16 where every id fits in it, else uint32."""
        return np.dtype(np.uint16 if self.padded_vocab_size <= 65536 else np.uint32)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; `from_json` refuses anything that does not add up."""

    tokenizer: TokenizerInfo
    train: tuple[ShardInfo, ...]
    val: tuple[ShardInfo, ...]
    documents: dict[str, int]
    """Documents by split."""
    text_bytes: dict[str, int]
    """UTF-8 bytes of the documents by split."""
    sources: tuple[str, ...] = ()
    invalid_utf8: int = 0
    """Byte sequences that were not UTF-8 and became U+FFFD."""
    dtype: str = "uint16"
    chunk_tokens: int = CHUNK_TOKENS
    window: int = WINDOW
    """Shards that are shuffled together (W)."""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options that the data was prepared with; the same ones give the same shards."""
    learned: dict[str, int] | None = None
    """Tokens by split that the loss masks let be learned; None where there are no masks."""

    @property
    def version(self) -> int:
        """Version of the shard format: 2 where shards hold loss masks."""
        return VERSION if self.learned is None else MASKED_VERSION

    def shards(self, split: str) -> tuple[ShardInfo, ...]:
        """The shards of "train" or "val"."""
        if split not in SPLITS:
            raise DataError(f"split = {split!r} is unknown", f"use one of {', '.join(SPLITS)}")
        return self.train if split == "train" else self.val

    def tokens(self, split: str | None = None) -> int:
        """Tokens in one split, or in both."""
        splits = SPLITS if split is None else (split,)
        return sum(shard.tokens for name in splits for shard in self.shards(name))

    def count(self) -> str:
        """Training tokens and shards in short, as "103.4B tokens across 207 shards"."""
        shards = len(self.train)
        said = f"{_short(self.tokens('train'))} tokens across {shards} shard{'s' * (shards != 1)}"
        if self.learned is not None:
            said += f", {self.learned['train'] / max(1, self.tokens('train')):.1%} of them learned"
        return said

    def describe(self) -> str:
        """One sentence on the data for a report."""
        made_of = ", ".join(self.sources[:3]) + (", …" if len(self.sources) > 3 else "")
        return (
            f"{self.count()} ({self.tokens('train'):,}), validation {self.tokens('val'):,} tokens; "
            f"{self.documents['train']:,} and {self.documents['val']:,} documents, "
            f"{self.text_bytes['train'] / 1e6:,.1f} and {self.text_bytes['val'] / 1e6:,.1f} MB of "
            f"text from {made_of or 'an unnamed source'}; {self.tokenizer.kind} tokenizer with "
            f"{self.tokenizer.vocab_size:,} ids ({self.tokenizer.sha256[:12]})"
        )

    def fingerprint(self) -> str:
        """Words and a hash that tell the order and content of training rows.

        Two data sets with the same fingerprint give the same batches, wherever they lie.
        """
        facts = [[shard.tokens, shard.bytes, shard.crc32c] for shard in self.train]
        digest = hashlib.sha256(json.dumps([self.window, facts]).encode()).hexdigest()[:12]
        return (
            f"{len(self.train)} shards with {self.tokens('train'):,} tokens in windows of "
            f"{self.window} ({digest}) of tokenizer {self.tokenizer.sha256[:12]}"
        )

    def to_json(self) -> str:
        """The text of manifest.json, the same for the same content."""
        fields = dataclasses.asdict(self) | {"format": FORMAT, "version": self.version}
        if self.learned is None:
            del fields["learned"]  # the first version did not know it
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> "Manifest":
        """Reads and checks a manifest.

        Raises:
            DataError: not JSON, another format or version, fields missing or contradictory.
        """
        try:
            raw = json.loads(text)
            kind, version = raw.pop("format", None), raw.pop("version", None)
            if kind != FORMAT or version not in (VERSION, MASKED_VERSION):
                raise DataError(
                    f"{where}: format {kind!r} version {version!r} is not {FORMAT!r} version "
                    f"{VERSION} or {MASKED_VERSION}",
                    "prepare the data again with this version",
                )
            raw["tokenizer"] = TokenizerInfo(**raw["tokenizer"])
            raw["sources"] = tuple(raw["sources"])
            for split in SPLITS:
                raw[split] = tuple(ShardInfo(**shard) for shard in raw[split])
            manifest = cls(**raw)
            if manifest.version != version:
                raise ValueError(f"version {version} does not go with its loss masks")
            _check(manifest, where)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where} is damaged ({error})", "prepare the data again") from error
        return manifest


def _short(number: int) -> str:
    """A count as people say it: 103.4B, 4.1M, 950."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _check(manifest: Manifest, where: str) -> None:
    """Contradictions inside a manifest, before any shard is opened."""
    info = manifest.tokenizer
    problems = []
    if manifest.dtype != info.dtype.name:
        problems.append(f"dtype {manifest.dtype} cannot be that of {info.padded_vocab_size} ids")
    if not 0 <= info.bos_id < info.vocab_size <= info.padded_vocab_size:
        problems.append(f"bos_id {info.bos_id}, vocab_size {info.vocab_size} out of range")
    if manifest.learned is not None:
        for split in SPLITS:
            if not 0 <= manifest.learned[split] <= manifest.tokens(split):
                problems.append(f"learned {manifest.learned[split]} of {split} is out of range")
    if manifest.window < 1:
        problems.append(f"window {manifest.window} < 1")
    if not manifest.train:
        problems.append("no training shard")
    shards = manifest.train + manifest.val
    if len({shard.name for shard in shards}) != len(shards):
        problems.append("a shard is listed twice")
    for shard in shards:
        if "/" in shard.name or shard.name.startswith("."):
            problems.append(f"shard name {shard.name!r}")
        if min(shard.records, shard.tokens, shard.bytes) < 1:
            problems.append(f"{shard.name} has an empty count")
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}", "prepare the data again")


def load_manifest(data_dir: str | Path) -> Manifest:
    """Reads `data_dir/manifest.json`.

    Raises:
        DataError: the folder is missing, was never finished, or its manifest is damaged.
    """
    where = storage.join(data_dir, MANIFEST)
    if not storage.exists(where):
        what = "has no manifest.json" if storage.exists(data_dir) else "does not exist"
        raise DataError(
            f"data_dir = {str(data_dir)!r} {what}",
            "prepare it with `gchat data prepare` (it can be run again to finish)",
        )
    return Manifest.from_json(storage.read_text(where), where)


def write_manifest(data_dir: str | Path, manifest: Manifest) -> None:
    """Writes manifest.json atomically. Call it last: its presence says the data set is complete."""
    _check(manifest, MANIFEST)
    storage.write_text(storage.join(data_dir, MANIFEST), manifest.to_json())

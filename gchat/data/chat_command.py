"""`gchat data chat`: options, and the files that they name."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gaia import storage
from gaia.config import load_yaml
from gaia.data.manifest import Manifest
from gaia.data.shards import SHARD_TOKENS
from gaia.errors import ConfigError
from gchat import tokenizer as tokenizers
from gchat.chat_format import ChatFormat, format_of, read_format
from gchat.data import chat_units, pool
from gchat.data.chats import Plan, prepare
from gchat.tokenizer import Tokenizer

SEQ_LEN = 2048


@dataclass(frozen=True)
class Chats:
    """Conversations to prepare, and how; all but `workers` and `overwrite` decide the bytes."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or globs of .jsonl (also .gz, .bz2, .xz, .zst) or .parquet. A row holds
    messages, prompt and completion, instruction and response, or question and answer."""
    out: Path
    """Folder for shards, manifest.json, tokenizer.json and chat.json."""
    tokenizer: str | None = None
    """Tokenizer: gpt2, or the path of a tokenizer.json."""
    base: str | None = None
    """Run whose tokenizer, chat format and row length are taken, in place of --tokenizer."""
    format: Literal["chat", "native", "chatml"] = "chat"
    """Tags around messages: those of the base or tokenizer (chat), native, or chatml."""
    seq_len: int | None = None
    """Longest piece in ids, that is the row of the training; the base's when left out, or 2048."""
    seed: int = 0
    """Seed of the shuffle."""
    val_fraction: float = 0.05
    """Share of conversations kept for validation, chosen by the hash of their content."""
    shard_tokens: int = SHARD_TOKENS
    """Size of one output shard in tokens, about."""
    max_bad: int = 0
    """Number of rows that may be unusable before the work stops; they are left out."""
    workers: int = 0
    """Number of processes; 0 takes one per core. The result does not depend on it."""
    overwrite: bool = False
    """Replace another data set in --out."""

    def check(self) -> None:
        """Raises ConfigError naming the option that cannot work."""
        if not self.inputs:
            raise ConfigError("no input is given", "name files of conversations")
        if (self.tokenizer is None) == (self.base is None):
            given = "neither --tokenizer nor" if self.base is None else "both --tokenizer and"
            raise ConfigError(f"{given} --base is given", "give one of them")
        if storage.is_remote(self.out) or str(self.out).startswith("gs:"):  # Path drops a slash
            raise ConfigError(
                f"out = {str(self.out)!r} is not a local folder",
                "prepare locally, then `gchat data upload` it",
            )
        if self.workers < 0:
            raise ConfigError(f"workers = {self.workers} is negative", "0 takes one per core")

    def opened(self) -> tuple[ChatFormat, int]:
        """The format and the length of rows.

        Raises:
            ConfigError: the tokenizer has no such tags.
            DataError: the tokenizer or the base is missing or damaged.
        """
        if self.base is not None:
            encoder = Tokenizer.load(self.base)
            chat_format = read_format(self.base, encoder, wanted=self.format)
            seq_len = _rows_of(Path(self.base)) if self.seq_len is None else self.seq_len
            return chat_format, seq_len
        assert self.tokenizer is not None
        if self.tokenizer == "gpt2":
            encoder = tokenizers.gpt2()
        elif storage.exists(self.tokenizer):
            encoder = Tokenizer.load(self.tokenizer)
        else:
            raise ConfigError(
                f"tokenizer = {self.tokenizer!r} is unknown", "use gpt2 or a tokenizer.json"
            )
        seq_len = SEQ_LEN if self.seq_len is None else self.seq_len
        return format_of(encoder, wanted=self.format), seq_len


def prepare_files(given: Chats, *, progress: bool | None = None) -> Manifest:
    """Prepares files of conversations, or returns at once when `out` already holds them.

    Args:
        given: options.
        progress: show bars; None shows them on a terminal.

    Raises:
        ConfigError: an option cannot work.
        DataError: a row is no conversation, nothing fits, or `out` holds another data set.
    """
    given.check()
    out = given.out.expanduser()
    # Files first: a tokenizer may have to be fetched.
    corpus = chat_units.corpus(given.inputs, exclude=out, max_bad=given.max_bad)
    chat_format, seq_len = given.opened()
    plan = Plan(
        out, chat_format, seq_len, given.seed, given.val_fraction, given.shard_tokens,
        given.workers or pool.cores(), given.overwrite, progress,
    )  # fmt: skip
    plan.check()
    if corpus.left_out:
        print(f"not read: {corpus.left_out}", file=sys.stderr, flush=True)
    return prepare(plan, corpus)


def _rows_of(run: Path) -> int:
    """T of a run."""
    try:
        return int(load_yaml(run / "config.yaml")["model"]["seq_len"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"base = {str(run)!r} says no model.seq_len", "give --seq-len") from None

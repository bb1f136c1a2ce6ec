"""Conversations to a finished data set: rows -> messages -> ids and loss masks -> shards, manifest.

As `gchat data prepare` does for text (units, two passes, one writer, resumed after a kill, the same
bytes whatever the number of workers), with shards of version 2: each id has a bit that says whether
it is learned. A conversation is one document, or several where it is longer than a row
(gchat.data.fitting). It belongs to validation by the hash of its content, so copies stay together.

Beside the shards lie chat.json (and chat_template.jinja), by which a run knows the format, and
chats.json with the counts of what was cut and left out.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gaia import storage
from gaia.data.lengths import LENGTHS
from gaia.data.manifest import MANIFEST, MASKED_VERSION, Manifest
from gaia.data.shards import SHARD_TOKENS
from gaia.errors import ConfigError
from gaia.work_folder import WorkFolder
from gaia.writer_lock import WriterLock
from gchat import tokenizer as tokenizers
from gchat.chat_format import (
    CHAT,
    CHAT_TEMPLATE,
    ChatFormat,
    Conversation,
    write_format,
)
from gchat.data import buckets, chat_units, work
from gchat.data.ending import (
    SHARD_NAMES,
    TOKEN_BYTES,
    WHAT,
    finish,
    finished_set,
    names_of,
    previous_parameters,
    shuffled,
)
from gchat.data.fitting import Fitted, fit
from gchat.data.sources.unit import Corpus

WORK = "chat"
COUNTS = "chats.json"
SOURCE = "chats"
SEQ_LEN = 2048
_BUCKETS = 100
_REMEDY = "use more conversations, longer rows (--seq-len), or another --val-fraction"


@dataclass(frozen=True)
class Plan:
    """All that decides the bytes, besides the conversations."""

    out: Path
    chat_format: ChatFormat
    seq_len: int
    seed: int = 0
    val_fraction: float = 0.05
    shard_tokens: int = SHARD_TOKENS
    workers: int = 1
    overwrite: bool = False
    progress: bool | None = None

    def check(self) -> None:
        """Raises ConfigError naming the number that cannot work."""
        if self.seq_len < 8:
            raise ConfigError(f"seq_len = {self.seq_len} is too small", "use at least 8")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction = {self.val_fraction} is out of range", "use 0.05")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens = {self.shard_tokens}", "use at least 1")
        if not 0 <= self.seed < buckets.SEEDS:
            raise ConfigError(f"seed = {self.seed} is out of range", f"below {buckets.SEEDS}")
        if self.chat_format.kind == "text":
            raise ConfigError("the format text has no end of a message", "use --format chat")

    def parameters(self, corpus: Corpus) -> dict[str, Any]:
        """Everything that decides the bytes of the data set; kept in the manifest."""
        template = self.chat_format.template
        previous = {} if self.overwrite else previous_parameters(self.out, WORK)
        return {
            "source": SOURCE,
            **corpus.identified(previous),
            "tokenizer": self.chat_format.tokenizer.sha256,
            "format": self.chat_format.kind,
            "template": None if template is None else sha256_text(template.text),
            "seq_len": self.seq_len,
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "shard_tokens": self.shard_tokens,
            "buckets": _BUCKETS,
            "max_bad": corpus.max_bad,
            "version": MASKED_VERSION,
        }


def prepare_conversations(
    conversations: Iterable[Conversation],
    chat_format: ChatFormat,
    out: str | Path,
    seq_len: int,
    *,
    seed: int = 0,
    val_fraction: float = 0.05,
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Manifest:
    """Prepares conversations that a program makes, such as a mixture of tasks.

    They are written down beside `out` first, so the work can go on after an interruption: called
    again with the same conversations, it does, or returns what is finished.

    Args:
        conversations: in an order that is the same each time.
        chat_format: with tags.
        out: local folder.
        seq_len: T, the longest piece.
        seed: of the shuffle.
        val_fraction: share kept for validation.
        shard_tokens: size of a shard, about.
        workers: processes.
        overwrite: replace another data set in `out`.
        progress: show bars; None shows them on a terminal.

    Raises:
        ConfigError: a number out of range, or a format without tags.
        DataError: a conversation's roles are out of order, nothing fits, or `out` holds another
            data set.
    """
    folder = Path(out).expanduser()
    plan = Plan(
        folder, chat_format, seq_len, seed, val_fraction, shard_tokens, workers, overwrite, progress
    )
    plan.check()
    spool = folder.with_name(f".{folder.name}.conversations.jsonl")
    storage.make_folder(folder.parent)
    with WriterLock(spool.with_suffix(".lock"), f"{WHAT} in {folder}"), _removed(spool):
        digest = _write(conversations, spool)
        listed = chat_units.corpus([str(spool)])
        identity = {"files": digest}
        corpus = replace(listed, sources=("conversations",), identity=identity, listing=None)
        return prepare(plan, corpus)


@contextlib.contextmanager
def _removed(spool: Path) -> Iterator[None]:
    try:
        yield
    finally:
        spool.unlink(missing_ok=True)


def _write(conversations: Iterable[Conversation], spool: Path) -> str:
    """Writes conversations as lines of JSON; their SHA-256."""
    digest = hashlib.sha256()
    with storage.open_atomic(spool) as file:
        for conversation in conversations:
            conversation.check()
            row = json.dumps(conversation.to_json(), ensure_ascii=False).encode() + b"\n"
            digest.update(row)
            file.write(row)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Encode(work.Encode):
    """The first pass over one unit: conversations to pieces with loss masks.

    A worker does one unit at a time, so its counts are the unit's.
    """

    chat_format: ChatFormat = field(kw_only=True)
    seq_len: int = field(kw_only=True)
    masked: ClassVar[bool] = True

    def __call__(self, task: Any) -> dict[str, Any]:
        object.__setattr__(self, "_fitted", Fitted())
        return super().__call__(task)

    def encoded(self, document: str) -> Iterable[np.ndarray]:
        conversation = Conversation.from_json(json.loads(document))
        for piece in fit(conversation, self.chat_format, self.seq_len, self._counts):
            yield np.array(piece.ids, np.uint32) | work.LEARNED * np.array(piece.mask, np.uint32)

    def counts(self) -> dict[str, Any]:
        return {"fitted": asdict(self._counts)}

    @property
    def _counts(self) -> Fitted:
        return self.__dict__["_fitted"]


def prepare(plan: Plan, corpus: Corpus) -> Manifest:
    """Prepares listed conversations, or returns at once when the folder already holds them."""
    parameters = plan.parameters(corpus)
    folder = plan.out
    if not plan.overwrite and (finished := finished_set(folder, parameters)) is not None:
        return finished
    with WorkFolder(folder, WORK, what=WHAT, markers="unit-*.json") as place:
        if plan.overwrite:
            place.clear(_all_names(folder))
        elif (finished := finished_set(folder, parameters)) is not None:  # by another process
            return finished
        names = [MANIFEST, LENGTHS, TOKEN_BYTES, COUNTS, CHAT, tokenizers.FILE]
        names += [CHAT_TEMPLATE] * (plan.chat_format.template is not None)
        place.begin(parameters, names, later=SHARD_NAMES)
        return _work(plan, corpus, place, parameters)


def _work(plan: Plan, corpus: Corpus, place: WorkFolder, parameters: dict[str, Any]) -> Manifest:
    """Both passes and the manifest."""
    encoder, folder = plan.chat_format.tokenizer, plan.out
    first = _Encode(
        place.scratch, encoder, plan.seed, plan.val_fraction, _BUCKETS, corpus.max_bad,
        chat_format=plan.chat_format, seq_len=plan.seq_len,
    )  # fmt: skip
    units = work.encode(first, corpus, plan.workers, plan.progress)
    corpus.check_bad(units)
    fitted = Fitted()
    for unit in units:
        fitted.add(unit["fitted"])
    bad = sum(unit["bad"] for unit in units)
    _report(fitted, units, plan.seq_len)
    shards = shuffled(first, place, units, plan.shard_tokens, plan.workers, plan.progress, _REMEDY)
    encoder.save(folder / tokenizers.FILE)
    write_format(folder, plan.chat_format)
    counts = asdict(fitted) | {"bad": bad, "seq_len": plan.seq_len}
    storage.write_text(folder / COUNTS, json.dumps(counts, indent=1) + "\n")
    return finish(first, corpus, place, units, shards, parameters=parameters)


def _report(fitted: Fitted, units: list[dict[str, Any]], seq_len: int) -> None:
    """Says on stderr what was cut and left out."""
    if fitted.cut or fitted.skipped:
        print(fitted.sentence(seq_len), file=sys.stderr, flush=True)
    if bad := sum(unit["bad"] for unit in units):
        first = next(unit["bad_first"] for unit in units if unit["bad"])
        print(
            f"{bad:,} rows that are no conversation were left out, the first is {first}",
            file=sys.stderr,
            flush=True,
        )


def _all_names(folder: Path) -> list[str]:
    """Files of the finished data set in a folder; none where there is no such set."""
    names = names_of(folder)
    return [*names, COUNTS, CHAT, CHAT_TEMPLATE] if names else []


def sha256_text(text: str) -> str:
    """Digest of a chat template."""
    return hashlib.sha256(text.encode()).hexdigest()

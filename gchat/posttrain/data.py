"""Training data of the stages: conversations, tasks and text, prepared in the run's folder.

    chats.jsonl  folder/  gsm8k@4  smoltalk=FILE  manual.txt notes.md  prepared/

A file of rows is text or conversations by its fields, a folder by its files of rows if it has any:
the README.md beside a data set of the hub says nothing about it.

What was prepared lies in RUN/data/HASH, where HASH is of everything that decides it: the content of
the files, the tokenizer, the chat format and the row. So a start that was interrupted goes on, and
another `--data` never trains on what an earlier one left.
"""

import hashlib
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gaia import storage
from gaia.data.manifest import MANIFEST, load_manifest
from gaia.errors import ConfigError, DataError, GaiaError
from gchat.chat_format import ChatFormat
from gchat.conversation import Conversation, is_shaped
from gchat.data import chat_units
from gchat.data.chat_check import check_chats
from gchat.data.chats import prepare_conversations
from gchat.data.prepare import prepare
from gchat.data.sources import files, text
from gchat.data.sources.content import Listing
from gchat.data.sources.unit import Corpus, Tally
from gchat.data.sources.walk import walk
from gchat.posttrain.base_run import check_tokenizer
from gchat.posttrain.start import Prepared, Setting
from gchat.tasks.opening import files_of, named
from gchat.tasks.task import Task
from gchat.tokenizer import FILE, Tokenizer

_TIMES = re.compile(r"(.+)@(\d+(?:\.\d+)?)")


class Entry(NamedTuple):
    """One thing that `--data` names."""

    name: str
    """A path, or a task as people type it."""
    times: float
    """Number of times that it is taken."""


class Source(NamedTuple):
    """Conversations of one entry: of files, or of a task."""

    entry: Entry
    files: Corpus | None
    task: Task | None

    def identity(self, seed: int, *, former: bool = False) -> Any:
        """All that decides the conversations; `former`: by the rule before 2026-12."""
        if self.files is not None:
            before = self.files.listing.former_identity if former and self.files.listing else None
            return [self.files.identified({"files": before}), self.entry.times]
        assert self.task is not None
        # The content of its files: an edited one is another data set, as files of chats are.
        paths = files_of(self.entry.name, "train")
        content = Listing(paths, [path.stat().st_size for path in paths]).identity
        return [self.entry.name, content, len(self.task), seed, self.entry.times]

    def once(self) -> Iterator[Conversation]:
        """Yields each conversation once, in a fixed order."""
        if self.files is not None:
            for unit in self.files.units:
                for line in unit.documents(self.files.tally()):
                    yield Conversation.from_json(json.loads(line))
        for index in range(len(self.task or ())):
            assert self.task is not None
            yield self.task.conversation(self.task[index])

    def taken(self) -> Iterator[Conversation]:
        """Yields them as often as they are taken; of a part of a time, the first."""
        for _ in range(int(self.entry.times)):
            yield from self.once()
        if part := self.entry.times % 1:
            conversations = list(self.once())
            yield from conversations[: max(1, round(part * len(conversations)))]


def conversations(setting: Setting) -> Prepared:
    """Prepares the conversations that `--data` names.

    Raises:
        ConfigError: nothing is named, or a file is text.
        DataError: a file is missing, or a row is no conversation.
    """
    entries = parsed(setting.config.stage.data)
    if shards := _prepared_set(setting, entries):
        return shards
    for entry in entries:
        if _is_text(fields := _fields(entry)) and not is_shaped(fields):
            raise ConfigError(
                f"--data {entry.name} is text, of which no answer can be learned",
                "use `gchat midtrain`, or give .jsonl with messages",
            )
    return _conversations(setting, entries)


def text_or_conversations(setting: Setting) -> Prepared:
    """The same, or a text to continue pretraining on.

    Raises:
        ConfigError: nothing is named, text beside conversations, or text several times.
        DataError: a file is missing or cannot be used.
    """
    entries = parsed(setting.config.stage.data)
    if shards := _prepared_set(setting, entries):
        return shards
    texts = [entry for entry in entries if _is_text(_fields(entry))]
    if not texts:
        return _conversations(setting, entries)
    if others := [entry for entry in entries if entry not in texts]:
        raise ConfigError(
            f"--data names text ({texts[0].name}) and conversations ({others[0].name})",
            "give only text, or only conversations and tasks",
        )
    if several := [entry for entry in texts if entry.times != 1]:
        raise ConfigError(
            f"--data {several[0].name} is text and taken {several[0].times:g} times",
            "leave out the @; --epochs takes all of it several times",
        )
    return _text(setting, texts)


def parsed(data: Sequence[str]) -> list[Entry]:
    """Entries of `--data`, each with the times behind its @.

    Raises:
        ConfigError: there is none, or one is taken no times.
    """
    if not data:
        raise ConfigError("stage.data is not set", "give --data FILE.jsonl, a folder or tasks")
    entries = []
    for given in data:
        match = None if Path(given).exists() else _TIMES.fullmatch(given)
        entry = Entry(match[1], float(match[2])) if match else Entry(given, 1.0)
        if entry.times <= 0:
            raise ConfigError(f"--data {given} is taken {entry.times:g} times", "use 1 or more")
        entries.append(entry)
    return entries


def _prepared_set(setting: Setting, entries: Sequence[Entry]) -> Prepared | None:
    """A data set that was prepared before, where `--data` names one."""
    sets = [e for e in entries if storage.exists(storage.join(e.name, MANIFEST))]
    if not sets:
        return None
    place = sets[0].name
    if len(entries) > 1 or sets[0].times != 1:
        raise ConfigError(
            f"--data {place} is a prepared data set and stands beside others", "give it alone"
        )
    manifest = load_manifest(place)
    check_tokenizer(setting.base, Tokenizer.load(place), place)
    if manifest.learned is None:
        return Prepared(place, chat=False)
    return _whole_conversations(setting, place)


def _is_text(fields: Collection[str]) -> bool:
    """Tells text from conversations, by the fields of a row."""
    return "text" in fields and not {"messages", "conversations"} & set(fields)


def _fields(entry: Entry) -> Collection[str]:
    """Fields of the first row behind an entry; those of plain text are "text", of a task none."""
    path = Path(entry.name).expanduser()
    if not path.exists() and not any(mark in entry.name for mark in "*?"):
        return ()
    try:
        listed = walk(entry.name, files.kind, text.ENDINGS).files
    except GaiaError:
        return ()  # reading it says what is wrong
    of_rows = [file for file in listed if files.kind(file) in chat_units.ENDINGS]
    return next(filter(None, map(_fields_of, of_rows)), ()) if of_rows else ("text",)


def _fields_of(file: Path) -> Collection[str]:
    """Fields of a file's first row; none where it has no row, or one that cannot be read."""
    if files.kind(file) == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_schema(file).names
        except (pa.ArrowException, OSError):
            return ()
    try:
        row = json.loads(next(filter(str.strip, files.lines(file, Tally())), "{}"))
    except (DataError, ValueError, RecursionError):
        return ()
    if isinstance(row, list):  # messages without a name around them
        return ("messages",)
    return row if isinstance(row, dict) else ()


def _text(setting: Setting, entries: Sequence[Entry]) -> Prepared:
    """Text, tokenized as the base run's was."""
    folder = setting.config.run.folder / "data"
    corpus = text.corpus(*(entry.name for entry in entries), exclude=folder)
    if corpus.left_out:
        print(f"not read of --data: {corpus.left_out}", file=sys.stderr, flush=True)
    out = folder / _key([corpus.identified(), setting.base.tokenizer.sha256])
    prepare(source="text", corpus=corpus, out=out, tokenizer=str(setting.base.path / FILE))
    return Prepared(str(out), chat=False)


def _conversations(setting: Setting, entries: Sequence[Entry]) -> Prepared:
    """Conversations of files and tasks, rendered and masked in shards."""
    config, chat_format = setting.config, setting.format
    seed = config.training.seed
    sources = [_source(entry, seed) for entry in entries]
    facts = [*_format_facts(chat_format), config.model.seq_len]
    out, former = (
        config.run.folder / "data" / _key([*facts, *(s.identity(seed, former=f) for s in sources)])
        for f in (False, True)
    )
    if former.exists():  # a run that began under that rule goes on
        out = former
    if not (out / MANIFEST).exists():
        made = (one for source in sources for one in source.taken())
        prepare_conversations(made, chat_format, out, config.model.seq_len, seed=seed)
    return _whole_conversations(setting, str(out))


def _whole_conversations(setting: Setting, place: str) -> Prepared:
    """Prepared conversations, of the model's format, and packed whole unless it is said how."""
    config = setting.config
    if "--data.packing" not in setting.typed:
        config = replace(config, data=replace(config.data, packing="best_fit"))
    manifest, packing = load_manifest(place), config.data.packing
    check_chats(manifest, setting.format, config.model.seq_len, packing)
    return Prepared(place, chat=True, config=config)


def _source(entry: Entry, seed: int) -> Source:
    """Opens one entry.

    Raises:
        ConfigError: it is no path, and no task of that name.
        DataError: nothing is there.
    """
    path = Path(entry.name).expanduser()
    if path.exists() or any(mark in entry.name for mark in "*?"):
        return Source(entry, chat_units.corpus([entry.name]), None)
    if (path.suffix or "/" in entry.name) and not {"=", ":"} & set(entry.name):
        raise DataError(f"--data {entry.name} does not exist", "check the path")
    return Source(entry, None, named(entry.name, "train", seed=seed))


def _format_facts(chat_format: ChatFormat) -> list[str | None]:
    template = chat_format.template
    return [chat_format.tokenizer.sha256, chat_format.kind, template and template.text]


def _key(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

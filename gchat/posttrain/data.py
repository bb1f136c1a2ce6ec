"""Training data of the stages: conversations, tasks and text, prepared in the run's folder.

    chats.jsonl  folder/  gsm8k@4  smoltalk=FILE  manual.txt  prepared/

What was prepared lies in RUN/data/HASH, where HASH is of everything that decides it: the content of
the files, the tokenizer, the chat format and the row. So a start that was interrupted goes on, and
another `--data` never trains on what an earlier one left.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gaia import storage
from gaia.data.manifest import MANIFEST, load_manifest
from gaia.errors import ConfigError, DataError
from gchat.chat_format import ChatFormat
from gchat.conversation import Conversation
from gchat.data import chat_units
from gchat.data.chat_check import check_chats
from gchat.data.chats import prepare_conversations
from gchat.data.prepare import prepare
from gchat.data.sources.unit import Corpus
from gchat.posttrain.base_run import check_tokenizer
from gchat.posttrain.start import Prepared, Setting
from gchat.tasks.opening import named
from gchat.tasks.task import Task
from gchat.tokenizer import Tokenizer

TEXTS = (".txt", ".md")
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

    def identity(self, seed: int) -> Any:
        """All that decides the conversations."""
        if self.files is not None:
            return [self.files.identity, self.entry.times]
        assert self.task is not None
        return [self.entry.name, len(self.task), seed, self.entry.times]

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
        if _is_text(entry):
            raise ConfigError(
                f"--data {entry.name} is text, of which no answer can be learned",
                "use `gchat midtrain`, or give .jsonl with messages",
            )
    return _conversations(setting, entries)


def text_or_conversations(setting: Setting) -> Prepared:
    """The same, or a text to continue pretraining on.

    Raises:
        ConfigError: nothing is named, or text and something else.
        DataError: a file is missing or cannot be used.
    """
    entries = parsed(setting.config.stage.data)
    if shards := _prepared_set(setting, entries):
        return shards
    texts = [entry for entry in entries if _is_text(entry)]
    if not texts:
        return _conversations(setting, entries)
    if len(entries) > 1 or texts[0].times != 1:
        raise ConfigError(
            f"--data names text ({texts[0].name}) and something else, or takes it several times",
            "give one text file, folder or glob, or only conversations and tasks",
        )
    return _text(setting, texts[0])


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


def _is_text(entry: Entry) -> bool:
    """Tells text from conversations: by the ending, and .jsonl by its first row's fields."""
    path = Path(entry.name).expanduser()
    if path.is_dir():
        return any(child.suffix in TEXTS for child in path.iterdir())
    if path.suffix in TEXTS:
        return True
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        return "text" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _text(setting: Setting, entry: Entry) -> Prepared:
    """Text, tokenized as the base run's was."""
    config, base = setting.config, setting.base
    # A folder of another text is told by its manifest: preparing compares the files.
    out = config.run.folder / "data" / _key([str(Path(entry.name).absolute())])
    prepare(source="text", input=entry.name, out=out, tokenizer=str(base.path / "tokenizer.json"))
    return Prepared(str(out), chat=False)


def _conversations(setting: Setting, entries: Sequence[Entry]) -> Prepared:
    """Conversations of files and tasks, rendered and masked in shards."""
    config, chat_format = setting.config, setting.format
    seed = config.training.seed
    sources = [_source(entry, seed) for entry in entries]
    facts = [*_format_facts(chat_format), config.model.seq_len]
    out = config.run.folder / "data" / _key([*facts, *(s.identity(seed) for s in sources)])
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
    if path.exists():
        return Source(entry, chat_units.corpus([entry.name]), None)
    if (path.suffix or "/" in entry.name) and not {"=", ":"} & set(entry.name):
        raise DataError(f"--data {entry.name} does not exist", "check the path")
    return Source(entry, None, named(entry.name, "train", seed=seed))


def _format_facts(chat_format: ChatFormat) -> list[str | None]:
    template = chat_format.template
    return [chat_format.tokenizer.sha256, chat_format.kind, template and template.text]


def _key(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

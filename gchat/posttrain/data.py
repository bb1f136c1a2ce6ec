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
from pathlib import Path
from typing import Any, NamedTuple

from gaia import storage
from gaia.data.manifest import MANIFEST
from gaia.errors import ConfigError, DataError
from gchat.chat_format import ChatFormat
from gchat.conversation import Conversation
from gchat.data import prepare
from gchat.posttrain.shards_for_now import prepare_conversations
from gchat.posttrain.start import Prepared, Setting
from gchat.tasks.opening import named
from gchat.tasks.task import Task

TEXTS = (".txt", ".md", ".parquet")
_TIMES = re.compile(r"(.+)@(\d+(?:\.\d+)?)")


class Entry(NamedTuple):
    """One thing that `--data` names."""

    name: str
    """A path, or a task as people type it."""
    times: float
    """Number of times that it is taken."""


def conversations(setting: Setting) -> Prepared:
    """Prepares the conversations that `--data` names.

    Raises:
        ConfigError: nothing is named, or a file is text.
        DataError: a file is missing, or a row is no conversation.
    """
    entries = parsed(setting.config.stage.data)
    if shards := _prepared_set(entries):
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
        ConfigError: nothing is named, or text and conversations together.
        DataError: a file is missing or cannot be used.
    """
    entries = parsed(setting.config.stage.data)
    if shards := _prepared_set(entries):
        return shards
    texts = [entry for entry in entries if _is_text(entry)]
    if not texts:
        return _conversations(setting, entries)
    if len(entries) > 1:
        raise ConfigError(
            f"--data names text ({texts[0].name}) and something else",
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


def _prepared_set(entries: Sequence[Entry]) -> Prepared | None:
    """A data set that was prepared before, where `--data` names one."""
    sets = [e for e in entries if storage.exists(storage.join(e.name, MANIFEST))]
    if not sets:
        return None
    if len(entries) > 1 or sets[0].times != 1:
        raise ConfigError(
            f"--data {sets[0].name} is a prepared data set and stands beside others",
            "give it alone, or use --data.mixture",
        )
    manifest = prepare.load_manifest(sets[0].name)
    return Prepared(Path(sets[0].name), chat=manifest.learned is not None)


def _is_text(entry: Entry) -> bool:
    """Tells text from conversations: by the ending, and .jsonl by the fields of its first row."""
    path = Path(entry.name)
    if path.is_dir():
        return any(p.suffix in TEXTS for p in path.iterdir())
    if path.suffix in TEXTS or any(c in path.name for c in "*?["):
        return True
    if not path.is_file() or path.suffix != ".jsonl":
        return False
    first = next(iter(_rows(path)), None)
    return first is not None and isinstance(first[1], dict) and set(first[1]) & {"text"} != set()


def _text(setting: Setting, entry: Entry) -> Prepared:
    """Text, tokenized as the base run's was."""
    base = setting.base
    paths = _files(Path(entry.name)) if Path(entry.name).exists() else []
    key = _key({"files": [_digest(p) for p in paths] or entry.name, "t": base.tokenizer.sha256})
    out = setting.config.run.folder / "data" / key
    prepare.prepare(
        source="text", input=entry.name, out=out, tokenizer=str(base.path / "tokenizer.json")
    )
    return Prepared(out, chat=False)


def _conversations(setting: Setting, entries: Sequence[Entry]) -> Prepared:
    """Conversations of files and tasks, rendered, masked and packed into shards."""
    config, chat_format = setting.config, setting.format
    sources = [_source(entry, config.training.seed) for entry in entries]
    key = _key(
        {
            "sources": [source.identity for source in sources],
            "tokenizer": chat_format.tokenizer.sha256,
            "format": [chat_format.kind, chat_format.jinja()],
            "row": config.model.seq_len,
        }
    )
    out = config.run.folder / "data" / key
    prepare_conversations(_all(sources), chat_format, out, config.model.seq_len)
    return Prepared(out, chat=True)


class Source(NamedTuple):
    """Conversations of one entry."""

    identity: Any
    """What decides them: hashes of files, or a task's name and length."""
    times: float
    files: tuple[Path, ...]
    task: Task | None


def _source(entry: Entry, seed: int) -> Source:
    path = Path(entry.name)
    if path.exists():
        files = tuple(_files(path))
        return Source([[_digest(p) for p in files], entry.times], entry.times, files, None)
    if (path.suffix or "/" in entry.name) and not {"=", ":"} & set(entry.name):
        raise DataError(f"--data {entry.name} does not exist", "check the path")
    task = named(entry.name, "train", seed=seed)
    return Source([entry.name, len(task), seed, entry.times], entry.times, (), task)


def _files(path: Path) -> list[Path]:
    """The .jsonl files of a folder, or the file itself.

    Raises:
        DataError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", *TEXTS) and p.is_file())
    if not files:
        raise DataError(f"--data {path} holds no .jsonl file", "check the path")
    return files


def _all(sources: Sequence[Source]) -> Iterator[Conversation]:
    """All conversations, source after source, each as often as it is taken."""
    for source in sources:
        whole, part = int(source.times), source.times % 1
        for _ in range(whole):
            yield from _once(source)
        if part:
            all_of_it = list(_once(source))
            yield from all_of_it[: round(part * len(all_of_it))]


def _once(source: Source) -> Iterator[Conversation]:
    if source.task is not None:
        for index in range(len(source.task)):
            yield source.task.conversation(source.task[index])
    for path in source.files:
        for number, row in _rows(path):
            try:
                yield Conversation.from_json(row)
            except DataError as error:
                raise DataError(f"{path} line {number}: {error.problem}", error.remedy) from None


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, row) of a .jsonl file; blank lines are left out.

    Raises:
        DataError: the file cannot be read, or a line is no JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise DataError(
                            f"{path} line {number} is no JSON ({error})", "mend the line"
                        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}", "convert it") from None
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "check the path") from None


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})", "check the path") from None


def _key(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def describe_format(chat_format: ChatFormat) -> str:
    """One sentence on the tags around messages."""
    return f"conversations: format {chat_format.kind}"

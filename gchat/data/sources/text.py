"""Local text: a .txt, .md, .jsonl or .parquet file, a folder of them, or a glob.

What is a document:
- .jsonl and .parquet: the text field of one line or row;
- .txt and .md: a run of paragraphs. Paragraphs are gathered until they hold `document_chars`
  characters, and the document ends at the next blank line; a paragraph of more than four times
  that is cut at a line end or space. The end of a file always ends a document.

Text must be UTF-8. Sequences that are not are replaced by U+FFFD and counted; a file with NUL
bytes, or with more than a tenth of such sequences, is binary or in another encoding and refused.
"""

import codecs
import glob
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.data.sources.unit import Corpus, Tally, Unit

ENDINGS = (".txt", ".md", ".jsonl", ".parquet")
DOCUMENT_CHARS = 4096
UNIT_BYTES = 256 << 20  # small files are grouped to this much; an interruption repeats one group
_BLOCK = 1 << 20
_HASHED_BYTES = 256 << 20  # above this, a file is known by size and time instead of its SHA-256
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_REPLACEMENT = "\ufffd".encode()


def corpus(path: str, *, text_column: str = "text", document_chars: int = DOCUMENT_CHARS) -> Corpus:
    """Lists the files behind `path` (a file, folder or glob) in sorted order.

    Raises:
        DataError: nothing there, or only empty files.
        ConfigError: a file of another kind was named.
    """
    if document_chars < 1:
        raise ConfigError(f"document_chars = {document_chars} is not positive", "try 4096")
    found = _files(path)
    sizes = [file.stat().st_size for file in found]
    if not sum(sizes):
        raise DataError(f"input = {path!r} holds no text: every file is empty", "check the path")
    hashed = sum(sizes) <= _HASHED_BYTES
    identity = [
        [file.name, size, storage.sha256_file(file) if hashed else file.stat().st_mtime_ns]
        for file, size in zip(found, sizes, strict=True)
    ]
    units = [
        Unit(
            name=group[0].name if len(group) == 1 else f"{group[0].name} … {group[-1].name}",
            documents=_Reader(group, text_column, document_chars),
            text_bytes=sum(file.stat().st_size for file in group),
        )
        for group in _grouped(found, sizes)
    ]
    return Corpus(
        units=units,
        sources=tuple(str(file) for file in found),
        identity={
            "files": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            "text_column": text_column,
            "document_chars": document_chars,
        },
    )


def _files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_dir():
        found = [f for f in given.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file()]
    elif given.is_file():
        found = [given]
    else:
        found = [Path(name) for name in glob.glob(str(given), recursive=True)]
        found = [file for file in found if file.is_file()]
    if not found:
        what = f"a folder without {', '.join(ENDINGS)} files" if given.is_dir() else "not there"
        raise DataError(f"input = {path!r} is {what}", "check the path")
    for file in found:
        if file.suffix.lower() not in ENDINGS:
            raise ConfigError(
                f"input = {str(file)!r} has the ending {file.suffix!r}",
                f"use files that end in {', '.join(ENDINGS)}",
            )
    return sorted(found)


def _grouped(files: Sequence[Path], sizes: Sequence[int]) -> Iterator[list[Path]]:
    group: list[Path] = []
    total = 0
    for file, size in zip(files, sizes, strict=True):
        group.append(file)
        total += size
        if total >= UNIT_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


class _Reader:
    """Reads the documents of a group of files."""

    def __init__(self, files: Sequence[Path], text_column: str, document_chars: int) -> None:
        self._files = files
        self._text_column = text_column
        self._document_chars = document_chars

    def __call__(self, tally: Tally) -> Iterator[str]:
        for file in self._files:
            if file.suffix.lower() == ".parquet":
                yield from parquet(file, self._text_column)
            elif file.suffix.lower() == ".jsonl":
                yield from _jsonl(file, self._text_column, tally)
            else:
                yield from _cut(_decoded(file, tally), self._document_chars)


def _decoded(file: Path, tally: Tally) -> Iterator[str]:
    """Blocks of a file as text with \\n line ends; refuses what is not text."""
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True
    )
    invalid = chars = 0
    tail = b""
    with open(file, "rb") as stream:
        for block in itertools.chain(iter(lambda: stream.read(_BLOCK), b""), (b"",)):
            if b"\0" in block:
                raise DataError(
                    f"{file} holds NUL bytes: binary data, or text that is not UTF-8",
                    "remove it from the input, or convert it to UTF-8",
                )
            text = decoder.decode(block, final=not block)
            # U+FFFD that the file itself spells is no error; its bytes may lie across two blocks.
            invalid += text.count("\ufffd") - (tail + block).count(_REPLACEMENT)
            tail = (tail + block)[-2:]
            chars += len(text)
            if text:
                yield text
    if invalid * 10 > chars:
        raise DataError(
            f"{file} is not UTF-8 text ({invalid:,} invalid sequences in {chars:,} characters)",
            "remove it from the input, or convert it to UTF-8",
        )
    tally.invalid_utf8 += invalid


def _cut(blocks: Iterator[str], least: int) -> Iterator[str]:
    """Blocks of text to documents of at least `least` characters that end at blank lines."""
    text = ""
    for block in blocks:
        text += block
        start = 0
        while (end := _document_end(text, start, least)) is not None:
            if document := text[start:end].strip():
                yield document
            start = end
        text = text[start:]
    while text:
        end = _document_end(text, 0, least) or len(text)
        if document := text[:end].strip():
            yield document
        text = text[end:]


def _document_end(text: str, start: int, least: int) -> int | None:
    """Where the document that begins at `start` ends, or None when more text is needed."""
    most = start + 4 * least
    blank = _BLANK_LINE.search(text, start + least, most)
    if blank:
        return blank.end()
    if len(text) <= most:
        return None
    for separator in ("\n", " "):
        if (at := text.rfind(separator, start + least, most)) >= 0:
            return at + 1
    return most


def _jsonl(file: Path, column: str, tally: Tally) -> Iterator[str]:
    """The text field of each line."""
    for number, line in enumerate(_lines(_decoded(file, tally)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{file} line {number} is not JSON ({error})", "mend or remove it"
            ) from None
        if not isinstance(row, dict) or column not in row:
            has = ", ".join(sorted(row)) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise DataError(
                f"{file} line {number} has no field {column!r}; it has: {has}",
                "name the one that holds the text with --text-column",
            )
        if not isinstance(row[column], str):
            raise DataError(
                f"{file} line {number}: field {column!r} is {type(row[column]).__name__}, not text",
                "name the one that holds the text with --text-column",
            )
        if text := row[column].strip():
            yield _printable(text)


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    rest: list[str] = []
    for block in blocks:
        *lines, last = block.split("\n")
        for line in lines:
            yield "".join([*rest, line])
            rest = []
        rest.append(last)
    yield "".join(rest)


def parquet(file: Path, column: str) -> Iterator[str]:
    """The text column of a parquet file, row by row; nulls and empty texts are left out.

    Raises:
        DataError: not parquet, or no such text column (those there are listed).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                raise DataError(
                    f"{file} has no column {column!r}; it has: {', '.join(schema.names)}",
                    "name the one that holds the text with --text-column",
                )
            kind = schema.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(
                    f"{file}: column {column!r} is {kind}, not text; columns: "
                    f"{', '.join(schema.names)}",
                    "name the one that holds the text with --text-column",
                )
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if text and (text := text.strip()):
                        yield text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file} is not readable as parquet ({line})", "get it again") from error


def _printable(text: str) -> str:
    """Without the lone surrogates that JSON escapes can spell and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")

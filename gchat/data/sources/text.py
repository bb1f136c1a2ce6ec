"""Local text: a .txt, .md, .jsonl or .parquet file, a folder of them, or a glob.

The first three may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`). What is a document:
- .jsonl and .parquet: the text field of one line or row;
- .txt and .md: a run of paragraphs. Paragraphs are gathered until they hold `document_chars`
  characters, and the document ends at the next blank line; a paragraph of more than four times
  that is cut at a line end or space. The end of a file always ends a document.

A unit of work is a group of small files, or 256 MiB of a large one (lines of a plain file, row
groups of a parquet file), so that several processes share even a single file.

Text must be UTF-8. Sequences that are not are replaced by U+FFFD and counted; a file with NUL
bytes, or with more than a tenth of such sequences, is binary or in another encoding and refused.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.data.sources import files
from gchat.data.sources.content import Listing
from gchat.data.sources.unit import META_FIELDS, Corpus, Row, Tally, Unit
from gchat.data.sources.walk import walk

ENDINGS = (".txt", ".md", ".jsonl", ".parquet")
DOCUMENT_CHARS = 4096
UNIT_BYTES = 256 << 20  # small files are grouped to this much; an interruption repeats one group
PART_BYTES = 256 << 20  # and large ones are cut to this much
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_BLANK_BEGIN = re.compile(r"\A(?:[^\S\n]*\n)+")


@dataclasses.dataclass(frozen=True)
class Part:
    """A file, or a range of it: bytes of a plain file, row groups of a parquet file."""

    file: Path
    range: tuple[int, int] | None = None
    bytes: int = 0
    name: str = ""
    """The file's path below the folder that was given."""


def corpus(
    path: str,
    *more: str,
    text_column: str = "text",
    document_chars: int = DOCUMENT_CHARS,
    exclude: Path | None = None,
    part_bytes: int | None = None,
) -> Corpus:
    """Lists the files behind `path` (a file, folder or glob) in sorted order.

    Args:
        more: files, folders or globs that come after it; a file that is there already is left out.
        text_column: field of .jsonl and .parquet files.
        document_chars: size of the documents that .txt and .md files are cut to.
        exclude: folder that is not read, because results are written there.
        part_bytes: size of a unit: small files are grouped to it, large ones cut;
            default 256 MiB.

    Raises:
        DataError: nothing there, or only empty files.
        ConfigError: a file of another kind was named.
    """
    if document_chars < 1:
        raise ConfigError(f"document_chars = {document_chars} is not positive", "try 4096")
    walked = {given: walk(given, files.kind, ENDINGS, exclude) for given in (path, *more)}
    real: dict[str, tuple[Path, str]] = {}
    for given, each in walked.items():
        for file in each.files:
            real.setdefault(os.path.realpath(file), (file, given))
    paths = [file for file, _ in real.values()]
    sizes = [file.stat().st_size for file in paths]
    if not sum(sizes):
        named = " ".join(map(repr, walked))
        raise DataError(f"input = {named} holds no text: every file is empty", "check the path")
    return Corpus(
        units=[
            unit_of(group, text_column, document_chars)
            for group in grouped(
                _named_parts(list(real.values()), sizes, part_bytes or PART_BYTES),
                part_bytes or UNIT_BYTES,
            )
        ],
        sources=tuple(files.shown(file) for file in paths),
        paths=tuple(paths),
        left_out=" ".join(filter(None, (each.sentence() for each in walked.values()))),
        identity={"text_column": text_column, "document_chars": document_chars},
        listing=Listing(paths, sizes),
    )


def unit_of(group: Sequence[Part], text_column: str, document_chars: int) -> Unit:
    """Parts of files as one unit."""
    return Unit(
        name=_name(group),
        documents=_Reader(group, text_column, document_chars),
        rows=_RowReader(group, text_column, document_chars),
        text_bytes=sum(part.bytes for part in group),
    )


def _named_parts(
    listed: Sequence[tuple[Path, str]], sizes: Sequence[int], part_bytes: int
) -> Iterator[Part]:
    """Parts of files, each with the input that it was named by."""
    for (file, given), size in zip(listed, sizes, strict=True):
        folder = Path(given).expanduser()
        name = files.shown(file.relative_to(folder) if folder.is_dir() else file.name)
        for part in parts(file, size, part_bytes):
            yield dataclasses.replace(part, name=name)


def grouped(parts: Iterable[Part], unit_bytes: int) -> Iterator[list[Part]]:
    """Parts in groups of `unit_bytes`, about, in their order."""
    group: list[Part] = []
    total = 0
    for part in parts:
        group.append(part)
        total += part.bytes
        if total >= unit_bytes:
            yield group
            group, total = [], 0
    if group:
        yield group


def parts(file: Path, size: int, part_bytes: int) -> Iterator[Part]:
    """Ranges of a file of about `part_bytes`; the whole file where it cannot be divided."""
    if size <= part_bytes or files.is_compressed(file):
        yield Part(file, None, size)
    elif files.kind(file) == ".parquet":
        yield from _row_groups(file, size, part_bytes)
    else:
        for start in range(0, size, part_bytes):
            end = min(start + part_bytes, size)
            yield Part(file, (start, end), end - start)


def _row_groups(file: Path, size: int, part_bytes: int) -> Iterator[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            count = table.metadata.num_row_groups
    except (pa.ArrowException, OSError):
        count = 1  # reading it says what is wrong
    at_once = max(1, count * part_bytes // size)
    for start in range(0, count, at_once):
        end = min(start + at_once, count)
        yield Part(file, (start, end), size * (end - start) // count)


def _name(group: Sequence[Part]) -> str:
    names = [
        files.shown(p.file.name) + (f"[{p.range[0]}:{p.range[1]}]" if p.range else "")
        for p in group
    ]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the documents of a group of files (a class, because workers must receive it)."""

    parts: Sequence[Part]
    text_column: str
    document_chars: int

    def __call__(self, tally: Tally) -> Iterator[str]:
        for row in _RowReader(self.parts, self.text_column, self.document_chars)(tally, ()):
            yield row.text


@dataclasses.dataclass(frozen=True)
class _RowReader:
    """Reads the documents with what the files say about them."""

    parts: Sequence[Part]
    text_column: str
    document_chars: int

    def __call__(self, tally: Tally, fields: Sequence[str] = META_FIELDS) -> Iterator[Row]:
        for part in self.parts:
            kind = files.kind(part.file)
            if kind == ".parquet":
                rows = _parquet(part, self.text_column, fields, tally)
            elif kind == ".jsonl":
                rows = _jsonl(part, self.text_column, fields, tally)
            else:
                blocks = files.decoded(part.file, tally, part.range)
                rows = (Row(document, {}) for document in _cut(blocks, self.document_chars))
            if "file" not in fields:
                yield from rows
            else:
                for row in rows:
                    yield Row(row.text, {"file": part.name} | row.meta)


def _cut(blocks: Iterator[str], least: int) -> Iterator[str]:
    """Blocks of text to documents of at least `least` characters that end at blank lines."""
    text = ""
    for block in blocks:
        text += block
        start = 0
        while (end := _document_end(text, start, least)) is not None:
            if document := _trimmed(text[start:end]):
                yield document
            start = end
        text = text[start:]
    while text:
        end = _document_end(text, 0, least) or len(text)
        if document := _trimmed(text[:end]):
            yield document
        text = text[end:]


def _trimmed(document: str) -> str:
    """Without the blank lines around it; the first line keeps its indentation."""
    return _BLANK_BEGIN.sub("", document.rstrip())


def _document_end(text: str, start: int, least: int) -> int | None:
    """End of the document that begins at `start`, or None when more text is needed."""
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


def _jsonl(part: Part, column: str, fields: Sequence[str], tally: Tally) -> Iterator[Row]:
    """The text field of each line; lines that cannot be read are counted, or end the work."""
    after = f"after byte {part.range[0]:,} " if part.range and part.range[0] else ""
    for number, line in enumerate(files.lines(part.file, tally, part.range), 1):
        if not line.strip():
            continue
        where = f"{files.shown(part.file)} {after}line {number}"
        try:
            row = _row(line, column, where)
        except DataError as error:
            tally.reject(where, error)
            continue
        if row[column] is None:
            tally.nulls += 1
        elif row[column].strip():
            yield Row(_printable(row[column].rstrip()), _meta(row, fields))


def _row(line: str, column: str, where: str) -> dict[str, Any]:
    """One line as an object whose `column` is a text or null; DataError for others."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(
            f"{where} is not JSON ({why})", "mend or remove it, or allow some with --max-bad"
        ) from None
    if not isinstance(row, dict) or column not in row:
        has = ", ".join(sorted(row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise files.column_error(where, f"field {column!r}", _printable(has))
    if row[column] is not None and not isinstance(row[column], str):
        raise DataError(
            f"{where}: field {column!r} is {type(row[column]).__name__}, not text",
            "name the one that holds the text with --text-column",
        )
    return row


def _meta(row: dict[str, Any], fields: Sequence[str]) -> dict[str, str]:
    return {key: _printable(str(row[key])) for key in fields if row.get(key) is not None}


def rows(file: Path, column: str, tally: Tally) -> Iterator[Row]:
    """The documents of one .jsonl or .parquet file with what it says about them."""
    part = Part(file, name=file.name)
    fields = tuple(field for field in META_FIELDS if field != "file")
    if files.kind(file) == ".parquet":
        return _parquet(part, column, fields, tally)
    return _jsonl(part, column, fields, tally)


def parquet(file: Path, column: str) -> Iterator[str]:
    """The text column of a parquet file, row by row; nulls and empty texts are left out.

    Raises:
        DataError: not parquet, or no such text column (those there are listed).
    """
    for row in _parquet(Part(file), column, (), Tally()):
        yield row.text


def _parquet(part: Part, column: str, fields: Sequence[str], tally: Tally) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = part.file
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                raise files.column_error(str(file), f"column {column!r}", ", ".join(schema.names))
            kind = schema.field(column).type
            if pa.types.is_dictionary(kind):  # a categorical column of pandas
                kind = kind.value_type
            if not any(is_text(kind) for is_text in _text_types()):
                raise DataError(
                    f"{file}: column {column!r} is {kind}, not text; columns: "
                    f"{', '.join(schema.names)}",
                    "name the one that holds the text with --text-column",
                )
            names = [column, *(name for name in fields if name in schema.names and name != column)]
            groups = range(*(part.range or (0, table.metadata.num_row_groups)))
            for batch in table.iter_batches(1024, row_groups=list(groups), columns=names):
                columns = {name: batch.column(name).to_pylist() for name in names}
                for i, text in enumerate(columns[column]):
                    if text is None:
                        tally.nulls += 1
                    elif text.strip():
                        meta = _meta({n: columns[n][i] for n in names[1:]}, fields)
                        yield Row(text.rstrip(), meta)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{files.shown(file)} is not readable as parquet ({line})", "get it again"
        ) from error


def _text_types() -> tuple[Callable[[Any], bool], ...]:
    import pyarrow as pa

    return pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view


def _printable(text: str) -> str:
    """Without the lone surrogates that JSON escapes can spell and UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")

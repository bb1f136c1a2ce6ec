"""Files of conversations as units of work: lines of .jsonl, rows of .parquet."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.chat_format import Conversation
from gchat.data.sources import files, text
from gchat.data.sources.content import Listing
from gchat.data.sources.text import Part
from gchat.data.sources.unit import Corpus, Tally, Unit
from gchat.data.sources.walk import walk

ENDINGS = (".jsonl", ".parquet")


def corpus(inputs: Sequence[str], *, exclude: Path | None = None, max_bad: int = 0) -> Corpus:
    """Lists files of conversations.

    Args:
        inputs: files, folders or globs of .jsonl (also compressed) and .parquet.
        exclude: folder that is not read, because results are written there.
        max_bad: rows that may be unusable before the work stops.

    Raises:
        DataError: nothing is there, or only empty files.
        ConfigError: a file of another kind was named, or `max_bad` is negative.
    """
    if max_bad < 0:
        raise ConfigError(f"max_bad = {max_bad} is negative", "use 0 or more")
    walked = [walk(path, files.kind, ENDINGS, exclude) for path in inputs]
    paths = list(dict.fromkeys(file for each in walked for file in each.files))
    sizes = [file.stat().st_size for file in paths]
    if not sum(sizes):
        raise DataError("the input holds no conversation: every file is empty", "check the paths")
    ranges = (
        dataclasses.replace(part, name=files.shown(file.name))
        for file, size in zip(paths, sizes, strict=True)
        for part in text.parts(file, size, text.PART_BYTES)
    )
    units = [
        Unit(
            name=" … ".join(dict.fromkeys((group[0].name, group[-1].name))),
            documents=Reader(tuple(group)),
            text_bytes=sum(part.bytes for part in group),
        )
        for group in text.grouped(ranges, text.UNIT_BYTES)
    ]
    return Corpus(
        units=units,
        sources=tuple(files.shown(file) for file in paths),
        identity={},
        listing=Listing(paths, sizes),
        max_bad=max_bad,
        paths=tuple(paths),
        left_out=" ".join(filter(None, (each.sentence() for each in walked))),
    )


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the conversations of a group of files as lines of JSON that need no check any more."""

    parts: Sequence[Part]

    def __call__(self, tally: Tally) -> Iterator[str]:
        """Yields them in order; rows that are none are counted, or end the work."""
        for part in self.parts:
            for where, row in _rows(part, tally):
                try:
                    conversation = Conversation.from_json(
                        json.loads(row) if isinstance(row, str) else row
                    )
                except DataError as error:
                    tally.reject(where, DataError(f"{where}: {error.problem}", error.remedy))
                except (ValueError, RecursionError) as error:
                    why = "nested too deeply" if isinstance(error, RecursionError) else error
                    tally.reject(
                        where,
                        DataError(
                            f"{where} is not JSON ({why})",
                            "mend or remove it, or allow some with --max-bad",
                        ),
                    )
                else:
                    yield json.dumps(conversation.to_json(), ensure_ascii=False)


def _rows(part: Part, tally: Tally) -> Iterator[tuple[str, Any]]:
    """Places and rows, those of .jsonl as text."""
    if files.kind(part.file) == ".parquet":
        yield from _parquet(part)
        return
    after = f"after byte {part.range[0]:,} " if part.range and part.range[0] else ""
    for number, line in enumerate(files.lines(part.file, tally, part.range), 1):
        if line.strip():
            yield f"{files.shown(part.file)} {after}line {number}", line


def _parquet(part: Part) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = files.shown(part.file)
    try:
        with pq.ParquetFile(part.file) as table:
            groups = range(*(part.range or (0, table.metadata.num_row_groups)))
            number = sum(table.metadata.row_group(i).num_rows for i in range(groups.start))
            for batch in table.iter_batches(256, row_groups=list(groups)):
                for row in batch.to_pylist():
                    number += 1
                    # Columns that a row leaves empty are none of its fields.
                    fields = {name: value for name, value in row.items() if value is not None}
                    yield f"{shown} row {number}", fields
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{shown} is not readable as parquet ({line})", "get it again") from error

"""Rows of task files: .jsonl, .json, .csv and .parquet, the text ones also compressed.

A row knows the place it comes from, so that a missing field is told by file, line and name.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia.errors import DataError
from gchat.data.sources import files

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
_REMEDY = "mend the file, or name another --source"


@dataclass(frozen=True)
class Row:
    """One row, by field."""

    values: Mapping[str, Any]
    where: str
    """File and line."""
    name: str
    """Place among all rows of the task, as a name."""

    def text(self, field: str, *, empty: bool = False) -> str:
        """A field that is a text.

        Raises:
            DataError: it is missing, no text, or blank although `empty` is not allowed.
        """
        value = self.value(field)
        if not isinstance(value, str):
            raise self.wrong(field, f"is {_short(value)}, not a text")
        if not empty and not value.strip():
            raise self.wrong(field, "is empty")
        return value

    def texts(self, field: str, value: Any = None) -> tuple[str, ...]:
        """A field that is a list of two texts or more; `value` where it was read already."""
        value = self.value(field) if value is None else value
        good = isinstance(value, list | tuple) and len(value) > 1
        if not good or not all(isinstance(text, str) for text in value):
            raise self.wrong(field, f"is {_short(value)}, not a list of two texts or more")
        return tuple(value)

    def index(self, field: str, of: int) -> int:
        """A field that is the index of one of `of` choices."""
        value = self.value(field)
        number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < of:
            raise self.wrong(field, f"is {_short(value)}, not the index of one of {of} choices")
        return number

    def value(self, field: str) -> Any:
        """A field, whatever it holds.

        Raises:
            DataError: it is missing.
        """
        if field not in self.values:
            there = ", ".join(repr(name) for name in list(self.values)[:8]) or "nothing"
            raise self.wrong(field, f"is missing (there is {there})")
        return self.values[field]

    def wrong(self, field: str, problem: str) -> DataError:
        """The error of a field, with its file and line."""
        return DataError(f"{self.where}: {field!r} {problem}", _REMEDY)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Rows:
    """All rows of some files, parsed when they are asked for.

    Args:
        paths: the files, in order.
        header: names of the columns of a .csv file that has none.

    Raises:
        DataError: a file cannot be read, is of another kind, or all are empty.
    """

    def __init__(self, paths: Sequence[Path], header: Sequence[str] = ()) -> None:
        self._parts = [_READERS[_kind(path)](path, header) for path in paths]
        self._ends: list[int] = []
        for part in self._parts:
            self._ends.append(len(part) + (self._ends[-1] if self._ends else 0))
        if not len(self):
            raise DataError(
                f"{', '.join(files.shown(path) for path in paths)} holds no rows", _REMEDY
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = 0
        for part, end in zip(self._parts, self._ends, strict=True):
            if index < end:
                values, where = part[index - begin]
                return Row(values, where, str(index))
            begin = end
        raise AssertionError("an index lies in a part")


def _kind(path: Path) -> str:
    kind = files.kind(path)
    if kind not in ENDINGS:
        raise DataError(
            f"{files.shown(path)!r} is no task file", f"give one that ends in {', '.join(ENDINGS)}"
        )
    return kind


class _Lines:
    """Objects of a .jsonl file, a line each; blank lines are left out."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._path = files.shown(path)
        with files.opened(path) as stream:
            lines = stream.read().split(b"\n")
        self._lines = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], str]:
        number, line = self._lines[index]
        where = f"{self._path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError is one
            raise DataError(f"{where}: it is not JSON ({error})", _REMEDY) from None
        return _object(value, where), where


class _Array:
    """Objects of a .json file that holds one array."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._path = files.shown(path)
        with files.opened(path) as stream:
            data = stream.read()
        try:
            self._values = json.loads(data)
        except ValueError as error:
            raise DataError(f"{self._path}: it is not JSON ({error})", _REMEDY) from None
        if not isinstance(self._values, list):
            raise DataError(f"{self._path}: it holds no array", "use .jsonl for an object a line")

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], str]:
        where = f"{self._path}, item {index + 1}"
        return _object(self._values[index], where), where


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, list):  # a conversation without a name around it
        return {"messages": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: it is no JSON object", _REMEDY)
    return value


class _Csv:
    """Rows of a .csv file; the first one names the columns unless `header` does."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._path = files.shown(path)
        with files.opened(path) as stream:
            data = stream.read()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise DataError(f"{self._path}, line {line}: it is not UTF-8", _REMEDY) from None
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        self._rows: list[tuple[int, list[str]]] = []
        try:
            rows = list(_numbered(reader))
        except csv.Error as error:
            line = reader.line_num
            raise DataError(f"{self._path}, line {line}: it is no CSV ({error})", _REMEDY) from None
        named = bool(rows) and (not header or rows[0][1][0] == header[0])
        self._header = rows[0][1] if named else list(header)
        self._rows = rows[1:] if named else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], str]:
        line, cells = self._rows[index]
        where = f"{self._path}, line {line}"
        if len(cells) > len(self._header):
            raise DataError(
                f"{where}: it has {len(cells)} columns, not {len(self._header)}", _REMEDY
            )
        return dict(zip(self._header, cells, strict=False)), where


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each begins in."""
    begin = 1
    for cells in reader:
        if cells:
            yield begin, cells
        begin = reader.line_num + 1


class _Parquet:
    """Rows of a .parquet file."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        import pyarrow.parquet

        self._path = files.shown(path)
        try:
            self._table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{self._path} is no parquet file ({reason})", _REMEDY) from None

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], str]:
        values = self._table.slice(index, 1).to_pylist()[0]
        return values, f"{self._path}, row {index + 1}"


_READERS: dict[str, Callable[[Path, Sequence[str]], Any]] = {
    ".jsonl": _Lines,
    ".json": _Array,
    ".csv": _Csv,
    ".parquet": _Parquet,
}

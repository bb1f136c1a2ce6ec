"""Bytes of a text file, or of a range of its lines, as decoded blocks and lines.

Plain, `.gz`, `.bz2`, `.xz` and `.zst` files are read in blocks of 1 MiB, so that neither a large
file nor a long line of plain text takes memory. A JSON line has to be held whole; above 64 MiB it
is refused.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import itertools
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from gaia.errors import ConfigError, DataError
from gchat.data.sources.content import shown
from gchat.data.sources.unit import Tally

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
LINE_BYTES = 64 << 20
_BLOCK = 1 << 20
_REPLACEMENT = "\ufffd".encode()


def kind(file: Path) -> str:
    """The ending that says what the content is: `.jsonl` for `web.jsonl.gz`."""
    name = file.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def is_compressed(file: Path) -> bool:
    """True where the bytes of the file are not those of its text."""
    return file.suffix.lower() in COMPRESSED


_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError)
_WINDOW_LOG = 31  # the largest there is (zstd --long=31); it takes 2 GiB of memory while it is read


@contextlib.contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed.

    Raises:
        DataError: it cannot be read, or its compressed data is cut off or damaged.
    """
    ending = file.suffix.lower()
    try:
        if ending in _OPENERS:
            with _OPENERS[ending](file, "rb") as stream:
                yield stream
        elif ending == ".zst":
            limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
            with zstd.open(file, "rb", options=limit) as stream:
                yield cast(IO[bytes], stream)
        else:
            with open(file, "rb") as stream:
                yield stream
    except _DAMAGE as error:
        raise _damaged(file, ending, error) from error
    except OSError as error:
        if error.errno:
            raise DataError(
                f"{shown(file)} cannot be read ({error.strerror})", "check its permissions"
            ) from error
        raise _damaged(file, ending, error) from error


def _damaged(file: Path, ending: str, error: Exception) -> DataError:
    kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}.get(ending, "data")
    return DataError(
        f"{shown(file)} is truncated or damaged {kind} ({str(error).splitlines()[0]})",
        "get it again, or remove it",
    )


def listed(field: str, file: Path) -> list[str]:
    """The lines of a list that an option names, without blank ones; a BOM is no part of it.

    Raises:
        ConfigError: it is not there, or not UTF-8.
    """
    try:
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{field}: {error}", "give a text file") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{field} = {shown(file)!r} line {line} is not UTF-8", "convert the file to UTF-8"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def line_start(file: Path, offset: int) -> int:
    """Start of the first line at or after `offset` (the file's size when there is none)."""
    if offset == 0:
        return 0
    with open(file, "rb") as stream:
        stream.seek(offset - 1)
        at = offset - 1
        while block := stream.read(_BLOCK):
            if (place := block.find(b"\n")) >= 0:
                return at + place + 1
            at += len(block)
    return at


def _blocks(file: Path, part: tuple[int, int] | None) -> Iterator[bytes]:
    """Blocks of the whole file, or of the lines that begin in the range `part` of its bytes."""
    with opened(file) as stream:
        if part is None:
            yield from iter(lambda: stream.read(_BLOCK), b"")
            return
        at, end = (line_start(file, offset) for offset in part)
        stream.seek(at)
        while at < end and (block := stream.read(min(_BLOCK, end - at))):
            at += len(block)
            yield block


def decoded(file: Path, tally: Tally, part: tuple[int, int] | None = None) -> Iterator[str]:
    """Blocks of a file as text with \\n line ends; refuses what is not text.

    Args:
        tally: gets the sequences that were not UTF-8.
        part: only the lines that begin in this range of bytes.

    Raises:
        DataError: NUL bytes, or more than a tenth of the characters came from invalid sequences.
    """
    codec = "utf-8" if part and part[0] else "utf-8-sig"
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder(codec)("replace"), translate=True
    )
    invalid = chars = 0
    tail = b""
    for block in itertools.chain(_blocks(file, part), (b"",)):
        if b"\0" in block:
            raise DataError(
                f"{shown(file)} holds NUL bytes: binary data, or text that is not UTF-8",
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
            f"{shown(file)} is not UTF-8 text ({invalid:,} invalid sequences in {chars:,} "
            "characters)",
            "remove it from the input, or convert it to UTF-8",
        )
    tally.invalid_utf8 += invalid
    if invalid:
        tally.invalid_file = tally.invalid_file or shown(file)


def lines(file: Path, tally: Tally, part: tuple[int, int] | None = None) -> Iterator[str]:
    """The lines of a file.

    Raises:
        DataError: a line is longer than 64 MiB: no document, and it would not fit in memory.
    """
    rest: list[str] = []
    size = number = 0
    for block in decoded(file, tally, part):
        *whole, last = block.split("\n")
        for line in whole:
            yield "".join([*rest, line])
            rest = []
            size = 0
            number += 1
        rest.append(last)
        size += len(last)
        if size > LINE_BYTES:
            raise DataError(
                f"{shown(file)} line {number + 1}{_from(part)} is longer than "
                f"{LINE_BYTES >> 20} MiB",
                "write one document per line",
            )
    yield "".join(rest)


def _from(part: tuple[int, int] | None) -> str:
    return f" after byte {part[0]:,}" if part and part[0] else ""


def column_error(where: str, column: str, has: Any) -> DataError:
    """The error of a missing text column, which lists those there are."""
    return DataError(
        f"{where} has no {column}; it has: {has}",
        "name the one that holds the text with --text-column (in training --data.text-column)",
    )

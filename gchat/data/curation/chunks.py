"""Files between the stages: documents that survived the rules, with what compares them.

A unit leaves chunks of at most 65,536 documents or 64 MiB of text, so that memory does not grow
with a file: `NAME.docs` (zstd of JSON lines), `NAME.hash` and `NAME.sig` (arrays by document),
`NAME.band` (array by band), later `NAME.verdict` and `NAME.score`.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from gaia import storage
from gchat.data.curation import near
from gchat.data.curation.shingles import Hashed
from gchat.data.sources.unit import Row

_CHUNK_DOCUMENTS = 1 << 16
_CHUNK_BYTES = 64 << 20


def text_bytes(text: str) -> int:
    """Its length in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class OutputFile:
    """JSON lines, compressed with zstd, that appear complete or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._stream: Any = None

    def __enter__(self) -> Self:
        tmp = self._stack.enter_context(storage.atomic_path(self._path))
        self._stream = self._stack.enter_context(
            pa.CompressedOutputStream(pa.OSFile(str(tmp), "wb"), "zstd")
        )
        return self

    def write(self, row: Row) -> None:
        """Appends one document."""
        line = json.dumps({"text": row.text, **row.meta}, ensure_ascii=False)
        self._stream.write(f"{line}\n".encode())

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class Writer:
    """Writes the survivors of one unit as chunks.

    Attributes:
        names: of the chunks written so far.
    """

    def __init__(self, folder: Path, unit: int, options: near.Duplicates) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._unit = unit
        self._options = options
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Row] = []
        self._bytes = 0
        self._hashes: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._bands: list[np.ndarray] = []

    def add(self, rows: list[Row], h: Hashed) -> None:
        """Appends documents and the hashes of their words."""
        self._rows += rows
        self._bytes += sum(text_bytes(row.text) for row in rows)
        self._hashes.append(near.text_hashes([row.text for row in rows]))
        if self._options.near:
            self._signatures.append(near.signatures(h, self._options))
            self._bands.append(near.band_hashes(self._signatures[-1], self._options))
        if len(self._rows) >= _CHUNK_DOCUMENTS or self._bytes >= _CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        name = f"unit-{self._unit:06d}-{len(self.names):04d}"
        with OutputFile(self._folder / f"{name}.docs") as output:
            for row in self._rows:
                output.write(row)
        _save(self._folder / f"{name}.hash", np.concatenate(self._hashes))
        if self._options.near:
            _save(self._folder / f"{name}.sig", np.concatenate(self._signatures))
            _save(self._folder / f"{name}.band", np.concatenate(self._bands, axis=1))
        self.names.append(name)
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._flush()


def _save(path: Path, array: np.ndarray) -> None:
    with storage.open_atomic(path) as file:
        np.save(file, array)


class Chunk:
    """Reads what the stages left of one chunk."""

    def __init__(self, folder: Path, name: str) -> None:
        self._base = folder / name
        self.documents = len(self._map("hash"))

    def _file(self, ending: str) -> Path:
        return self._base.with_name(f"{self._base.name}.{ending}")

    def _map(self, ending: str) -> np.ndarray:
        return np.load(self._file(ending), mmap_mode="r")

    def rows(self) -> Iterator[Row]:
        """The documents in order."""
        with pa.input_stream(str(self._file("docs")), compression="zstd") as raw:
            rest = b""
            while block := raw.read(1 << 20):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    meta = json.loads(line)
                    yield Row(meta.pop("text"), meta)

    def hashes(self) -> np.ndarray:
        """uint64 [D, 2]."""
        return np.load(self._file("hash"))

    def band(self, number: int) -> np.ndarray:
        """uint64 [D]."""
        return np.array(self._map("band")[number])

    def signatures(self, documents: np.ndarray) -> np.ndarray:
        """uint32 [n, hashes] of some documents."""
        return np.array(self._map("sig")[documents])

    def verdict(self) -> np.ndarray:
        """uint8 [D]: KEPT, EXACT or NEAR."""
        return np.load(self._file("verdict"))

    def write_verdict(self, verdict: np.ndarray) -> None:
        """Keeps what the comparison found."""
        _save(self._file("verdict"), verdict)

    def scores(self) -> np.ndarray:
        """float32 [D]: bits per byte, NaN for copies."""
        return np.load(self._file("score"))

    def write_scores(self, scores: np.ndarray) -> None:
        """Keeps what the scorer found."""
        _save(self._file("score"), scores)


class SignatureRows:
    """Signatures of documents of the whole corpus, by number."""

    def __init__(self, parts: Sequence[Chunk], hashes: int) -> None:
        self._parts = parts
        self._hashes = hashes
        self._starts = np.concatenate([[0], np.cumsum([part.documents for part in parts])])

    def __call__(self, documents: np.ndarray) -> np.ndarray:
        """uint32 [n, hashes] of documents in ascending order."""
        rows = np.empty((len(documents), self._hashes), np.uint32)
        owners = np.searchsorted(self._starts, documents, side="right") - 1
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            rows[mine] = self._parts[owner].signatures(documents[mine] - self._starts[owner])
        return rows

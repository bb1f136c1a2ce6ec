"""Documents that hold a question of an evaluation set: found by shared word n-grams.

As in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C) an n-gram has 13 words. An item of 8
to 12 words is one n-gram of its own length; shorter ones say nothing and are left out.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaia.errors import DataError
from gchat.data.curation.shingles import Hashed, hashed, ngrams

NGRAM = 13
MIN_WORDS = 8
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".txt")


class EvalNgrams:
    """The n-grams of evaluation sets.

    Attributes:
        items: texts that can be recognised.
        skipped: texts that are too short for it.
    """

    def __init__(self, texts: Iterator[str]) -> None:
        by_length: dict[int, list[np.ndarray]] = {}
        self.items = self.skipped = 0
        for group in _groups(texts, 1024):
            h = hashed(group)
            counts = np.diff(h.offsets)
            self.skipped += int((counts < MIN_WORDS).sum())
            self.items += int((counts >= MIN_WORDS).sum())
            for n in range(MIN_WORDS, NGRAM + 1):
                grams, starts = ngrams(h, n)
                chosen = counts[h.document_W[starts]]
                wanted = chosen >= n if n == NGRAM else chosen == n
                by_length.setdefault(n, []).append(grams[wanted])
        merged = {n: np.unique(np.concatenate(parts)) for n, parts in by_length.items()}
        self._by_length = {n: grams for n, grams in merged.items() if len(grams)}

    def hits(self, h: Hashed) -> np.ndarray:
        """int64 [D]: n-grams of each document that an evaluation set has too."""
        count = np.zeros(len(h.offsets) - 1, np.int64)
        for n, known in self._by_length.items():
            grams, starts = ngrams(h, n)
            places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            hit = known[places] == grams
            count += np.bincount(h.document_W[starts[hit]], minlength=len(count))
        return count


def load(paths: Sequence[str]) -> EvalNgrams:
    """The n-grams of every text in these files and folders.

    Raises:
        DataError: nothing there, or a file that cannot be read.
    """
    files = [file for path in paths for file in _files(Path(path).expanduser())]
    return EvalNgrams(text for file in files for text in _texts(file))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(f for f in path.rglob("*") if f.name.lower().endswith(_ENDINGS))
    if not files:
        raise DataError(
            f"decontaminate: {str(path)!r} holds no evaluation set",
            f"give files that end in {', '.join(_ENDINGS)}",
        )
    return files


def _texts(file: Path) -> Iterator[str]:
    """Every text of a file: the strings of JSON objects, cells of a table, lines."""
    name = file.name.lower()
    try:
        opened = gzip.open if name.endswith(".gz") else open
        with opened(file, "rt", encoding="utf-8") as stream:
            if ".jsonl" in name:
                for line in stream:
                    if line.strip():
                        yield from _strings(json.loads(line))
            elif name.endswith(".json"):
                yield from _strings(json.load(stream))
            elif name.endswith(".csv"):
                for row in csv.reader(stream):
                    yield from row
            else:
                yield from stream
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, zlib.error) as error:
        raise DataError(f"decontaminate: {file} cannot be read ({error})", "mend it") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _groups(texts: Iterator[str], count: int) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group

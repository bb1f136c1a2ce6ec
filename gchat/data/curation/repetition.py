"""Gopher's repetition rules: lines, paragraphs and word n-grams that come again and again.

Rae et al. 2021, arXiv:2112.11446, table A1. The n-grams of a whole batch of documents are counted
by sorting hashes; per document Python would take a millisecond.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from gchat.data.curation.rules import Reason, Words, repeated_shares
from gchat.data.curation.shingles import Hashed, mix, ngrams

_PARAGRAPH = re.compile(r"\n{2,}")


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Gopher's repetition rules."""

    max_lines: float = 0.3
    """Maximum share of lines that came before."""
    max_line_chars: float = 0.2
    """Maximum share of characters in lines that came before."""
    max_paragraphs: float = 0.3
    """Maximum share of paragraphs that came before."""
    max_paragraph_chars: float = 0.2
    """Maximum share of characters in paragraphs that came before."""
    max_top: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Maximum share of characters in the most frequent 2-, 3- and 4-gram."""
    max_repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Maximum share of characters in 5- to 10-grams that came before."""

    def reasons(self, batch: Sequence[Words], h: Hashed) -> list[Reason | None]:
        """The first rule that each document of a batch breaks."""
        reasons = [self._lines(d) for d in batch]
        limits = [
            *((f"top_{n}_grams", n, limit, top) for n, limit in enumerate(self.max_top, 2)),
            *(
                (f"repeated_{n}_grams", n, limit, repeated)
                for n, limit in enumerate(self.max_repeated, 5)
            ),
        ]
        for name, n, limit, measure in limits:
            shares = measure(h, n)
            for i in np.flatnonzero(shares > limit).tolist():
                reasons[i] = reasons[i] or Reason(f"repetition.{name}", float(shares[i]))
        return reasons

    def _lines(self, d: Words) -> Reason | None:
        lines, line_chars = repeated_shares(d.lines)
        if lines > self.max_lines:
            return Reason("repetition.lines", lines)
        if line_chars > self.max_line_chars:
            return Reason("repetition.line_chars", line_chars)
        if "\n\n" in d.text:
            shares = repeated_shares([p for p in _PARAGRAPH.split(d.text) if p.strip()])
            if shares[0] > self.max_paragraphs:
                return Reason("repetition.paragraphs", shares[0])
            if shares[1] > self.max_paragraph_chars:
                return Reason("repetition.paragraph_chars", shares[1])
        return None


def top(h: Hashed, n: int) -> np.ndarray:
    """float [D]: share of characters in the most frequent n-gram (0 where none comes twice)."""
    grams, starts = ngrams(h, n)
    documents = len(h.offsets) - 1
    most = np.zeros(documents)
    if not len(grams):
        return most
    keys, starts = _by_document(h, grams, starts)
    order = np.argsort(keys, kind="stable")
    keys, starts = keys[order], starts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(first, len(keys)))
    again = counts > 1
    begin = starts[first[again]]
    ends = np.concatenate([[0], np.cumsum(h.chars_W)])
    np.maximum.at(most, h.document_W[begin], counts[again] * (ends[begin + n] - ends[begin]))
    return most / _chars(h)


def repeated(h: Hashed, n: int) -> np.ndarray:
    """float [D]: share of characters in n-grams that came before, none counted twice."""
    grams, starts = ngrams(h, n)
    documents = len(h.offsets) - 1
    if not len(grams):
        return np.zeros(documents)
    keys, starts = _by_document(h, grams, starts)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    again = starts[order[1:][keys[1:] == keys[:-1]]]
    if not len(again):
        return np.zeros(documents)
    edges = np.zeros(len(h.words_W) + 1, np.int64)
    edges += np.bincount(again, minlength=len(edges))
    edges -= np.bincount(again + n, minlength=len(edges))
    covered = np.cumsum(edges)[:-1] > 0
    chars = np.bincount(h.document_W, h.chars_W * covered, minlength=documents)
    return chars / _chars(h)


def _by_document(h: Hashed, grams: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys that differ between documents."""
    return grams ^ mix(h.document_W[starts].astype(np.uint64) + np.uint64(1)), starts


def _chars(h: Hashed) -> np.ndarray:
    documents = len(h.offsets) - 1
    return np.maximum(1, np.bincount(h.document_W, h.chars_W, minlength=documents))

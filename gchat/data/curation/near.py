"""Exact copies and near-duplicates over the whole corpus.

Signatures are MinHash (Broder 1997) of word n-grams, made by rensa. Documents that agree in all
rows of one band are candidates; they are joined where their signatures agree in at least the
threshold's share of places, which estimates the Jaccard similarity of their n-grams.

A document goes when it resembles an earlier one that stays. So what resembles the first of its
cluster only through others in between stays too: a chain of small edits is not one document.

Bands are looked at one after another, so that 40 bytes per document are in memory (100 million
documents: 4 GB), whatever their text; signatures are read from disk where candidates meet.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gaia.errors import ConfigError
from gchat.data.curation.shingles import Hashed, minhash, mix, ngrams

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SEED = 42
_PAIRS = 1 << 16  # candidates compared at a time
KEPT, EXACT, NEAR = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Exact and near-duplicate removal."""

    exact: bool = True
    """Remove copies (white space and case aside)."""
    near: bool = True
    """Remove near-duplicates."""
    threshold: float = 0.6
    """Minimum estimated Jaccard similarity of near-duplicates."""
    ngram: int = 5
    """Words of one shingle."""
    bands: int = 32
    """More bands find less similar pairs."""
    rows: int = 4
    """Hashes of one band; more rows find fewer pairs. bands x rows hashes make a signature."""

    @property
    def hashes(self) -> int:
        """Length of a signature."""
        return self.bands * self.rows

    def check(self) -> None:
        """Refuses what cannot work."""
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold = {self.threshold} is out of range", "use e.g. 0.6")
        if min(self.ngram, self.bands, self.rows) < 1 or self.hashes > 1024:
            raise ConfigError(
                f"ngram = {self.ngram}, bands = {self.bands}, rows = {self.rows}",
                "each at least 1, bands x rows at most 1024",
            )


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """uint64 [D, 2]: 128 bits of each text, white space and case aside."""
    digests = (
        hashlib.blake2b(" ".join(t.lower().split()).encode(), digest_size=16).digest()
        for t in texts
    )
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def signatures(h: Hashed, options: Duplicates) -> np.ndarray:
    """uint32 [D, hashes]: MinHash of each document; a document of few words is one shingle."""
    grams, starts = ngrams(h, options.ngram)
    documents = len(h.offsets) - 1
    counts = np.bincount(h.document_W[starts], minlength=documents)
    short = np.flatnonzero(counts == 0)
    if len(short):
        alone = np.array([_whole(h, i) for i in short.tolist()], np.uint64)
        at = np.cumsum(counts)[short]
        grams = np.insert(grams, at, alone)
        counts[short] = 1
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    matrix = minhash().digest_matrix_from_flat_token_hashes(grams, offsets, options.hashes, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(documents, options.hashes)


def _whole(h: Hashed, document: int) -> int:
    """One hash of all words of a document."""
    value = np.uint64(document if h.offsets[document] == h.offsets[document + 1] else 0)
    for word in h.words_W[h.offsets[document] : h.offsets[document + 1]]:
        value = mix(np.array([value ^ word]) * _MULTIPLIER)[0]
    return int(value)


def band_hashes(signatures_DH: np.ndarray, options: Duplicates) -> np.ndarray:
    """uint64 [bands, D]: equal where all rows of a band are equal."""
    rows = signatures_DH.reshape(-1, options.bands, options.rows).astype(np.uint64)
    value = np.zeros(rows.shape[:2], np.uint64)
    for row in range(options.rows):
        value = mix(value * _MULTIPLIER + rows[:, :, row])
    return np.ascontiguousarray(value.T)


def exact_copies(hashes_D2: np.ndarray) -> np.ndarray:
    """bool [D]: documents whose text came before."""
    order = np.lexsort((np.arange(len(hashes_D2)), hashes_D2[:, 1], hashes_D2[:, 0]))
    ordered = hashes_D2[order]
    copies = np.zeros(len(hashes_D2), bool)
    copies[order[1:][(ordered[1:] == ordered[:-1]).all(1)]] = True
    return copies


def near_copies(
    bands: Iterable[np.ndarray],
    signature_rows: Callable[[np.ndarray], np.ndarray],
    considered: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """bool [D]: documents that resemble an earlier one which stays.

    Args:
        bands: for each band its hash of every document, uint64 [D].
        signature_rows: the signatures [n, hashes] of documents by number, ascending.
        considered: bool [D]; others are neither removed nor compared.
        threshold: least share of equal hashes.
    """
    clusters = _Clusters(len(considered))
    known = np.flatnonzero(considered)
    for band in bands:
        hashes = band[known]
        order = np.argsort(hashes, kind="stable")
        hashes, documents = hashes[order], known[order]
        first = np.concatenate([[True], hashes[1:] != hashes[:-1]])
        again = np.flatnonzero(~first)
        leaders = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))[again]
        # Each is compared with the first of its group and with its neighbour.
        pairs = np.stack(
            [
                np.concatenate([documents[leaders], documents[again - 1]]),
                np.concatenate([documents[again], documents[again]]),
            ]
        )
        for start in range(0, pairs.shape[1], _PAIRS):
            _join(clusters, pairs[:, start : start + _PAIRS], signature_rows, threshold)
    return _followers(clusters.roots(), signature_rows, threshold)


def _followers(
    roots: np.ndarray, signature_rows: Callable[[np.ndarray], np.ndarray], threshold: float
) -> np.ndarray:
    """bool [D]: in each cluster, those that resemble the first, then the first of the rest, …"""
    follows = np.zeros(len(roots), bool)
    joined = np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1)
    joined = joined[np.argsort(roots[joined], kind="stable")]
    for members in np.split(joined, np.flatnonzero(np.diff(roots[joined])) + 1):
        while len(members) > 1:
            leader, others = signature_rows(members[:1])[0], members[1:]
            similar = np.concatenate(
                [
                    (signature_rows(others[at : at + _PAIRS]) == leader).mean(1) >= threshold
                    for at in range(0, len(others), _PAIRS)
                ]
            )
            follows[others[similar]] = True
            members = others[~similar]
    return follows


def _join(
    clusters: "_Clusters",
    pairs: np.ndarray,
    signature_rows: Callable[[np.ndarray], np.ndarray],
    threshold: float,
) -> None:
    roots = clusters.roots()
    pairs = np.unique(pairs[:, roots[pairs[0]] != roots[pairs[1]]], axis=1)
    if not pairs.size:
        return
    numbers, places = np.unique(pairs, return_inverse=True)
    rows = signature_rows(numbers)
    left, right = places.reshape(2, -1)
    similar = (rows[left] == rows[right]).mean(1) >= threshold
    for a, b in pairs[:, similar].T.tolist():
        clusters.join(a, b)


class _Clusters:
    """Disjoint sets whose root is their lowest number."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def _root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> np.ndarray:
        """The root of every number."""
        while True:
            further = self._parent[self._parent]
            if np.array_equal(further, self._parent):
                return further
            self._parent = further

"""Words and word n-grams of many documents at once, as arrays of 64-bit hashes.

Legend: D documents, W words of all of them one after another.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gaia.errors import ConfigError
from gaia.extras import install

# Three times as fast as a regular expression that finds words.
_PUNCTUATION = str.maketrans(
    dict.fromkeys("!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~“”‘’«»–—…¡¿。，、！？", " ")
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Hashed(NamedTuple):
    """The words of D documents."""

    words_W: np.ndarray
    """uint64: hash of each word, lower case, without punctuation."""
    chars_W: np.ndarray
    """int64: characters of each word."""
    document_W: np.ndarray
    """int64: which document it belongs to, ascending."""
    offsets: np.ndarray
    """int64 [D + 1]: where each document's words begin."""


def hashed(texts: Sequence[str]) -> Hashed:
    """Words without case and punctuation, hashed alike on every machine and in every process."""
    words = [text.lower().translate(_PUNCTUATION).split() for text in texts]
    counts = np.fromiter(map(len, words), np.int64, len(words))
    flat = [word for document in words for word in document]
    hashes = minhash().hash_token_sets([flat])[0]
    return Hashed(
        words_W=np.array(hashes, np.uint64),
        chars_W=np.fromiter(map(len, flat), np.int64, len(flat)),
        document_W=np.repeat(np.arange(len(words)), counts),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
    )


def minhash() -> Any:
    """rensa's MinHash in Rust.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        raise ConfigError("curation needs rensa", install("curate")) from None
    return RMinHash


def ngrams(h: Hashed, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the n-grams inside documents, and the word at which each begins."""
    if n < 1:
        raise ConfigError(f"n = {n} is no length of an n-gram", "use at least 1")
    count = len(h.words_W) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    total = np.zeros(count, np.uint64)
    for i in range(n):
        total = mix(total * _MULTIPLIER + h.words_W[i : i + count])
    inside = h.document_W[:count] == h.document_W[n - 1 :]
    return total[inside], np.flatnonzero(inside)


def mix(x: np.ndarray) -> np.ndarray:
    """Spreads what differs in any bit over all bits (the last step of MurmurHash3)."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return x ^ (x >> np.uint64(29))

"""Byte-pair encoding as a codec: merges by rank inside what a split pattern gives, by tiktoken."""

import base64
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiktoken

from gaia.errors import DataError

# Where white space ends, a split pattern goes back a step; for a run of a million characters that
# overflows the stack of the regex engine. Such texts are cut inside the run, which changes only how
# the run itself is divided.
_LONG = 1 << 18
_RUN = re.compile(rf"\s{{{_LONG // 4}}}")


def _cut(text: str) -> list[str]:
    """The parts of a text with very long runs of white space; none where it has no such run."""
    ends = [match.end() for match in _RUN.finditer(text)]
    if not ends or ends == [len(text)]:
        return []
    starts = [0, *(end for end in ends if end < len(text))]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


class BytePairs:
    """Byte-pair merges by rank, applied inside what a split pattern finds."""

    def __init__(self, pattern: str, ranks: Sequence[bytes]) -> None:
        self.pattern = pattern
        self.ranks = tuple(ranks)
        known = set(self.ranks)
        if len(known) != len(self.ranks) or any(bytes([b]) not in known for b in range(256)):
            raise DataError(
                "tokenizer: a byte is missing or a pair is listed twice", "make it again"
            )
        self.size = len(self.ranks)
        self.lengths = [len(piece) for piece in self.ranks]
        self._encoding = tiktoken.Encoding(
            "gaia",
            pat_str=pattern,
            mergeable_ranks={piece: rank for rank, piece in enumerate(self.ranks)},
            # Never allowed, so never encoded, and its id is no token's. tiktoken looks for special
            # tokens by one pattern; of none it makes the empty one, which matches at every
            # character: half of encode_array's time (8.6 against 16.7 MB/s).
            special_tokens={"<|none|>": 2**31},
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        if len(text) > _LONG and (parts := _cut(text)):
            return [number for part in parts for number in self.encode(part)]
        return self._encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> np.ndarray:
        """Ids as uint32 [n] (no Python list in between)."""
        if len(text) > _LONG and (parts := _cut(text)):
            return np.concatenate([self.encode_array(part) for part in parts])
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids."""
        return self._encoding.decode_bytes(ids)

    def definition(self) -> dict[str, Any]:
        """Fields of the stored tokenizer."""
        ranks = [base64.b64encode(piece).decode() for piece in self.ranks]
        return {"pattern": self.pattern, "ranks": ranks}

    def arguments(self) -> tuple[Any, ...]:
        """Arguments that make the same codec again."""
        return self.pattern, self.ranks

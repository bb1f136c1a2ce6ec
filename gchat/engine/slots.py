"""Rows of the cache: who has each, and which prompt it still holds.

A row keeps the prompt it was filled with when its answer has ended, until it is needed: a later
prompt that begins alike takes it over, or a copy of it. What was decoded is not reused, only what
was read from a prompt, and of a longer or shorter one only whole pieces: keys and values then come
from the same program over the same tokens as without reuse, and texts are equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_WORTH_TWO = 128
"""Pieces from this size on are cheaper read as two: a half and a quarter of its tokens."""


@dataclass
class Slot:
    """One row of the cache."""

    number: int
    sample: Any = None
    """The sample that has it; None where it is free."""
    read: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """Ids of the prompt that its keys and values belong to, from position 0."""
    used: int = 0
    """Place in the order in which rows were taken."""


def reusable(read: np.ndarray, wanted: np.ndarray, piece: int) -> int:
    """Count of first tokens of `wanted` that need not be read again where `read` has been."""
    n = min(len(read), len(wanted))
    differ = np.flatnonzero(read[:n] != wanted[:n])
    common = int(differ[0]) if len(differ) else n
    if common == len(read) == len(wanted):
        return common
    return common // piece * piece


class Slots:
    """The rows of a cache, in pieces of `piece` tokens."""

    def __init__(self, count: int, piece: int) -> None:
        self.all = [Slot(number) for number in range(count)]
        self.piece = piece
        self._clock = 0

    def free(self) -> list[Slot]:
        """Rows that nobody has."""
        return [slot for slot in self.all if slot.sample is None]

    def take(self, sample: Any, prompt: np.ndarray) -> Slot:
        """Gives a free row: one that holds the prompt's beginning, else the longest unused."""
        slot = max(
            self.free(),
            key=lambda s: (reusable(s.read, prompt, self.piece), -len(s.read[:1]), -s.used),
        )
        self._clock += 1
        slot.sample, slot.used = sample, self._clock
        return slot

    def source(self, slot: Slot, prompt: np.ndarray) -> tuple[Slot, int]:
        """The row that holds most of a prompt's beginning (`slot` if it does), and how much."""
        best = max(self.all, key=lambda s: (reusable(s.read, prompt, self.piece), s is slot))
        return best, reusable(best.read, prompt, self.piece)

    def forget(self) -> None:
        """Nothing of the cache can be used any more."""
        for slot in self.all:
            slot.read = slot.read[:0]


def pieces(start: int, end: int, piece: int, smallest: int = 16) -> Sequence[tuple[int, int]]:
    """(start, size) of each piece of a prompt; the last ones' sizes are powers of two.

    A last one that would be filled up by more than a quarter is read as two.
    """
    cut = []
    while start < end:
        size, left = piece, end - start
        while size // 2 >= max(left, smallest):
            size //= 2
        if size >= _WORTH_TWO and left <= size * 3 // 4:
            size //= 2
        cut.append((start, size))
        start += size
    return cut

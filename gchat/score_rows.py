"""Pairs of context and continuation to batches of rows: the part of scoring that needs no model.

    packing = Packing(seq_len, vocab)
    for window in packing.windows(pairs):
        window.batches, window.empty

Pairs are taken in windows of some batches' worth of tokens, and rows are made for a window at a
time: what several sequences begin with lies in a row once, short ones fill the gaps of long ones.
A window ends between sequences that share little, so that no prompt is forwarded in two of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from gaia.data import tries
from gaia.data.tries import Request
from gaia.errors import ConfigError

BATCH_TOKENS = 8192
"""Tokens that a device forwards at once."""
_WINDOW = 24  # batches' worth of tokens that are packed together

Pair = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Ids of a context, BOS first, and of its continuation."""


class Window(NamedTuple):
    """Pairs that were packed together."""

    batches: list[list[tries.Row]]
    """Rows of one length each, at most as many as `Packing.rows` says."""
    empty: list[int]
    """Numbers of pairs without a token to score."""


class Packing:
    """Rows for a model's row length and a number of devices.

    Args:
        seq_len: longest sequence: of context and continuation together the last tokens count.
        vocab: ids of the model.
        multiple: of which each row's length is one.
        devices: that share the rows of a batch.
        batch_tokens: forwarded at once by each device.
    """

    def __init__(
        self,
        seq_len: int,
        vocab: int,
        *,
        multiple: int = 8,
        devices: int = 1,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._seq_len, self._vocab = seq_len, vocab
        self._lengths = tries.row_lengths(seq_len, multiple)
        self._devices, self._batch_tokens = devices, batch_tokens

    def rows(self, length: int) -> int:
        """Rows of a batch, over all devices."""
        return max(1, self._batch_tokens // length) * self._devices

    def windows(self, pairs: Iterable[Pair]) -> Iterator[Window]:
        """All pairs in batches; a thread takes and sorts the next ones meanwhile.

        Raises:
            ConfigError: a context has no tokens, or an id is outside of the vocabulary.
        """
        units: list[tries.Unit] = []
        with ThreadPoolExecutor(1) as ahead:
            source = ahead.submit(_Source, self._requests(pairs)).result()
            taken: Future[_Taken] = ahead.submit(self._take, source)
            while True:
                requests, empty, is_last = taken.result()
                if not is_last:
                    taken = ahead.submit(self._take, source)
                units += tries.units(requests, self._seq_len, self._lengths[-1])
                batches, units = self._batches(units, is_last)
                yield Window(batches, empty)
                if is_last:
                    return

    def _requests(self, pairs: Iterable[Pair]) -> Iterator[Request | int]:
        """Sequences to score; the numbers of pairs that have none."""
        for number, (context, continuation) in enumerate(pairs):
            request = self._request(number, context, continuation)
            yield number if request is None else request

    def _request(self, number: int, context: Any, continuation: Any) -> Request | None:
        tokens = np.concatenate([np.asarray(context, np.int32), np.asarray(continuation, np.int32)])
        scored = len(tokens) - len(context)
        if len(context) == 0:
            raise ConfigError(f"request {number} has an empty context", "begin contexts with BOS")
        if tokens.min() < 0 or tokens.max() >= self._vocab:
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise ConfigError(
                f"request {number} holds id {wrong}, the model's are 0 to {self._vocab - 1}",
                "encode it with the tokenizer of the run",
            )
        tokens = tokens[-self._seq_len :]
        scored = min(scored, len(tokens) - 1)
        return Request(number, tokens, scored) if scored else None

    def _take(self, source: "_Source") -> "_Taken":
        """The next requests, as many as make some batches."""
        left = size = _WINDOW * self._batch_tokens * self._devices
        requests: list[Request] = []
        empty: list[int] = []
        while source.next is not None:
            # Twice the size at most: all of a long iterable might share something.
            if left <= -size or (left <= 0 and not _goes_on(requests[-1], source.next)):
                return _Taken(requests, empty, False)
            if isinstance(taken := source.take(), int):
                empty.append(taken)
                continue
            requests.append(taken)
            left -= len(taken.tokens)
        return _Taken(requests, empty, True)

    def _batches(
        self, units: list[tries.Unit], is_last: bool
    ) -> tuple[list[list[tries.Row]], list[tries.Unit]]:
        """Full batches, and the units that are left for the next window; at the end, all."""
        by_length: dict[int, list[tries.Row]] = {}
        for row in tries.pack(units, self._lengths):
            by_length.setdefault(row.length, []).append(row)
        batches: list[list[tries.Row]] = []
        rest: list[tries.Unit] = []
        for length, rows in by_length.items():
            # Rows with many targets together: a batch's head works as long as its fullest row's.
            rows.sort(key=lambda row: sum(r.scored for u in row.units for r in u.requests))
            count = self.rows(length)
            full = len(rows) // count * count
            batches += [rows[i : i + count] for i in range(0, full, count)]
            rest += chain.from_iterable(row.units for row in rows[full:])
        if not is_last or not rest:
            return batches, rest
        # What is left fills the longest rows it needs, so that few batches are half empty.
        longest = max(unit.size for unit in rest)
        rows = tries.pack(rest, self._lengths, shortest=longest)
        count = self.rows(rows[0].length)
        return batches + [rows[i : i + count] for i in range(0, len(rows), count)], []


class _Taken(NamedTuple):
    requests: list[Request]
    empty: list[int]
    is_last: bool


class _Source:
    """An iterator whose next item can be looked at; None at its end."""

    def __init__(self, items: Iterator[Request | int]) -> None:
        self._items = items
        self.next = next(items, None)

    def take(self) -> Request | int:
        """The next item, which there must be."""
        taken, self.next = self.next, next(self._items, None)
        assert taken is not None
        return taken


def _goes_on(before: Request, after: Request | int) -> bool:
    """True where the later one begins with half of its tokens as the earlier one does."""
    if isinstance(after, int):
        return False
    half = len(after.tokens) // 2
    return np.array_equal(before.tokens[:half], after.tokens[:half])

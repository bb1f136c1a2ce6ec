"""Token sequences to rows in which what they begin with in common lies once.

Scoring four answers to one prompt needs the prompt's keys and values once. Sorted, sequences stand
in the order of a walk through their prefix tree, and what each shares with the one before is the
length of their common beginning; so a row is filled sequence by sequence, each adding only its
rest, and `ends` tells the tokens that a later one continues (`gaia.kernels.segments.Trie`).

    units    sequences that share at least half of the next one: the answers to one prompt
    merged   neighbours that share less, such as the first example, as long as they fit a short row
    rows     units, longest first, into the fullest row with room (best-fit decreasing); few lengths

Shapes: B rows of a batch, R tokens of a row, M targets of a row.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gaia.data.batch import IGNORE

SHORTEST = 256
"""Rows have at least so many tokens: shorter ones would be many programs for little attention."""
_WORTH = 32  # tokens shared by neighbours that are worth tying them to one row


class Request(NamedTuple):
    """A sequence to score, by its number among those asked for."""

    number: int
    tokens: np.ndarray
    """int32 [n], n >= 2."""
    scored: int
    """Tokens at the end that are targets, 1 to n-1."""

    @property
    def inputs(self) -> np.ndarray:
        """All tokens but the last, which predicts nothing that is asked for."""
        return self.tokens[:-1]


class Unit(NamedTuple):
    """Requests that lie in one row, in the order of a walk through their trie."""

    requests: tuple[Request, ...]
    shared: tuple[int, ...]
    """Tokens that each has in common with the one before; 0 for the first."""
    size: int
    """Places that it takes in a row: tokens, or targets where there are more of these."""


class Row(NamedTuple):
    """A row to be filled."""

    length: int
    units: list[Unit]


class Laid(NamedTuple):
    """Rows as arrays, int32."""

    inputs_BR: np.ndarray
    positions_BR: np.ndarray
    ends_BR: np.ndarray
    at_BM: np.ndarray
    """Index in the row of the token that predicts each target; M = R."""
    targets_BM: np.ndarray
    """Targets, IGNORE behind the last one."""
    owners: list[list[tuple[int, int, int]]]
    """(request's number, first target, number of targets) of each row."""
    targets: int
    """Targets of the row that has most."""
    tokens: int
    """Tokens in the rows that are no padding."""


def row_lengths(seq_len: int, multiple: int = 1) -> list[int]:
    """Lengths that rows may have, ascending: two per octave, up to twice `seq_len`, and itself.

    Args:
        seq_len: longest sequence.
        multiple: of which each is one.
    """
    lengths, size = {seq_len, 2 * seq_len}, SHORTEST
    while size < 2 * seq_len:
        lengths |= {size, size * 3 // 2}
        size *= 2
    return sorted({-(-n // multiple) * multiple for n in lengths if SHORTEST <= n <= 2 * seq_len}
                  or {-(-SHORTEST // multiple) * multiple})  # fmt: skip


def units(requests: Iterable[Request], seq_len: int, most: int) -> list[Unit]:
    """Requests by what they share.

    Args:
        requests: in any order.
        seq_len: longest sequence; what shares little is merged up to this size.
        most: tokens of the longest row, at least `seq_len`.
    """
    keyed = sorted(((r.inputs.astype(">u4").tobytes(), r) for r in requests), key=lambda k: k[0])
    made: list[Unit] = []
    open_unit: list[tuple[Request, int]] = []
    before, ties = None, []
    for _, request in keyed:
        inputs = request.inputs
        shared = 0 if before is None else _common(before, inputs)
        grown = [*open_unit, (request, shared)]
        if open_unit and 2 * shared >= len(inputs) and _size(grown) <= most:
            open_unit = grown
        else:
            if open_unit:
                made.append(_unit(open_unit))
            open_unit = [(request, 0)]
            ties.append(shared)
        before = inputs
    if open_unit:
        made.append(_unit(open_unit))
    return _merged(made, ties, min(seq_len, most))


def _merged(made: list[Unit], ties: list[int], limit: int) -> list[Unit]:
    """Neighbours that share a little, as one unit of up to `limit` places."""
    merged: list[Unit] = []
    for unit, tie in zip(made, ties, strict=True):
        last = merged[-1] if merged else None
        if last and tie >= _WORTH and last.size + unit.size - tie <= limit:
            pairs = [*zip(last.requests, last.shared, strict=True)]
            rest = zip(unit.requests, (tie, *unit.shared[1:]), strict=True)
            merged[-1] = _unit([*pairs, *rest])
        else:
            merged.append(unit)
    return merged


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def _size(pairs: Sequence[tuple[Request, int]]) -> int:
    tokens = sum(len(request.inputs) - shared for request, shared in pairs)
    return max(tokens, sum(request.scored for request, _ in pairs))


def _unit(pairs: Sequence[tuple[Request, int]]) -> Unit:
    requests, shared = zip(*pairs, strict=True)
    return Unit(requests, shared, _size(pairs))


def pack(made: Iterable[Unit], lengths: Sequence[int], shortest: int = 0) -> list[Row]:
    """Units in rows.

    Args:
        made: each no larger than the longest length.
        lengths: that rows may have, ascending.
        shortest: of the rows, where something longer than the shortest length is wanted.
    """
    rows: list[Row] = []
    room: list[tuple[int, int]] = []  # (free places, index of the row), ascending
    for unit in sorted(made, key=lambda unit: -unit.size):
        at = bisect_left(room, (unit.size, -1))
        if at < len(room):
            free, index = room.pop(at)
        else:
            index = len(rows)
            free = lengths[bisect_left(lengths, max(unit.size, shortest))]
            rows.append(Row(free, []))
        rows[index].units.append(unit)
        insort(room, (free - unit.size, index))
    return rows


def lay_out(rows: Sequence[Row], count: int, length: int) -> Laid:
    """Rows of one length as arrays; `count` - len(rows) rows of padding follow.

    Padding sees itself only: a row without anything to see would be NaN.
    """
    inputs, positions, at, targets = (np.zeros((count, length), np.int32) for _ in range(4))
    targets[:] = IGNORE
    ends = np.tile(np.arange(1, length + 1, dtype=np.int32), (count, 1))
    owners: list[list[tuple[int, int, int]]] = []
    tokens = 0
    for b, row in enumerate(rows):
        end = column = 0
        owners.append([])
        for unit in row.units:
            path = np.zeros(0, np.int64)  # indices in the row of the sequence's tokens so far
            for request, shared in zip(unit.requests, unit.shared, strict=True):
                ends[b, path[shared:]] = end  # nothing continues these any more
                new = request.inputs[shared:]
                here = np.arange(end, end + len(new))
                inputs[b, here] = new
                positions[b, here] = np.arange(shared, shared + len(new))
                path = np.concatenate([path[:shared], here])
                end += len(new)
                n = request.scored
                at[b, column : column + n] = path[-n:]
                targets[b, column : column + n] = request.tokens[-n:]
                owners[-1].append((request.number, column, n))
                column += n
            ends[b, path] = end
        tokens += end
    most = max((row[-1][1] + row[-1][2] for row in owners if row), default=0)
    return Laid(inputs, positions, ends, at, targets, owners, most, tokens)

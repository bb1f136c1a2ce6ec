"""Documents to rows that hold several, each a segment that sees and predicts only itself.

    best_fit   longest first, into the fullest row with room (best-fit decreasing)
    first_fit  longest first, into the first row with room (first-fit decreasing)
    none       one to a row: what packing is measured against
    split      not here: one stream cut every T tokens, without segments (gaia.data.rows)

A document longer than T is cut into pieces of T and a rest; each piece is a segment with positions
from 0. Targets are shifted before anything is cut or packed, so none crosses a document: the last
token's target is the BOS that would come next (the end of the document), and a piece's last target
is the first token of the next piece.

What is packed together is one shard. Which piece lies in which row follows from the lengths of its
documents alone, and the number of rows from how often each length occurs, which `lengths.npz` tells
before a shard is read (gaia.data.lengths). So the order of rows stays what gaia.data.order makes
it, and the state of a run is one integer. A packer over a stream, such as Grain's, has to be
replayed from its last state instead, and what it packs depends on how many processes share the
stream.

Longest first is how Ding et al. 2024 (Fewer Truncations Improve Language Modeling) pack; FFD and
BFD need at most 11/9 of the best possible number of rows (Johnson 1973).

Shapes: B rows of a batch, R rows of a plan, P pieces in them, T time, N tokens of a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gaia.data.batch import IGNORE, Batch
from gaia.errors import ConfigError

Packing = Literal["split", "first_fit", "best_fit", "none"]

VERSION = 1
"""Version of the plans: a run must not go on with rows that are packed otherwise."""


@dataclass(frozen=True)
class Plan:
    """Places of a stream's pieces in rows, in the order of rows and of places in them."""

    seq_len: int
    start_P: np.ndarray
    length_P: np.ndarray
    first_R: np.ndarray
    """The first piece of each row, and P behind the last: [R + 1]."""

    def __len__(self) -> int:
        return len(self.first_R) - 1

    def gather(
        self,
        row_ids: np.ndarray,
        inputs_N: np.ndarray,
        targets_N: np.ndarray,
        learned_N: np.ndarray | None = None,
    ) -> Batch:
        """Rows of this plan as a batch, from the stream that it was made for.

        Args:
            row_ids: [B] below len(self).
            inputs_N: integer tokens.
            targets_N: the token that each of them predicts, or IGNORE.
            learned_N: bool, where a target is learned; None for everywhere.
        """
        rows = Batch.padding(len(row_ids), self.seq_len)
        counting = np.arange(self.seq_len, dtype=np.int32)
        unlearned_BT = None if learned_N is None else np.zeros(rows.inputs_BT.shape, bool)
        # Four copies of a slice for each piece: indices for all tokens at once would be faster
        # only where pieces have less than 40 tokens.
        for b, row in enumerate(row_ids.tolist()):
            at = 0
            pieces = slice(self.first_R[row], self.first_R[row + 1])
            places = zip(self.start_P[pieces].tolist(), self.length_P[pieces].tolist(), strict=True)
            for segment, (start, n) in enumerate(places, start=1):
                here = slice(at, at + n)
                rows.inputs_BT[b, here] = inputs_N[start : start + n]
                rows.targets_BT[b, here] = targets_N[start : start + n]
                rows.positions_BT[b, here] = counting[:n]
                rows.segments_BT[b, here] = segment
                if learned_N is not None and unlearned_BT is not None:
                    np.logical_not(learned_N[start : start + n], out=unlearned_BT[b, here])
                at += n
        if unlearned_BT is not None:
            rows.targets_BT[unlearned_BT] = IGNORE
        return rows


def plan(starts: np.ndarray, tokens: int, seq_len: int, packing: Packing) -> Plan:
    """The rows of a stream of documents.

    Args:
        starts: where each document begins, ascending from 0; empty documents take no place.
        tokens: N.
        seq_len: T.
        packing: any but `split`.
    """
    lengths = np.diff(np.append(starts, tokens))
    pieces = -(-lengths // seq_len)
    offset = _count_up(pieces) * seq_len
    start_P = np.repeat(starts, pieces) + offset
    length_P = np.minimum(np.repeat(lengths, pieces) - offset, seq_len)
    row_P, rows = place(length_P, seq_len, packing)
    # In a row the longest piece first, which is the order in which they were placed.
    order = np.lexsort((-length_P, row_P))
    first_R = np.concatenate([[0], np.cumsum(np.bincount(row_P, minlength=rows))])
    return Plan(seq_len, start_P[order], length_P[order], first_R)


def place(length_P: np.ndarray, seq_len: int, packing: Packing) -> tuple[np.ndarray, int]:
    """The row of each piece, int64 [P], and the number of rows.

    Args:
        length_P: each from 1 to `seq_len`; of equal ones the earlier is placed first.
        seq_len: T.
        packing: any but `split`.
    """
    if packing == "none":
        return np.arange(len(length_P)), len(length_P)
    by_length = np.argsort(-length_P, kind="stable")
    row_P = np.empty(len(length_P), np.int64)
    counts = np.bincount(length_P, minlength=seq_len + 1)
    row_P[by_length], rows = _FITS[packing](counts, seq_len)
    return row_P, rows


def count_rows(lengths: np.ndarray, counts: np.ndarray, seq_len: int, packing: Packing) -> int:
    """Rows of a plan for `counts[i]` documents of `lengths[i]` tokens, int64 arrays."""
    if packing == "split":
        return (int((lengths * counts).sum()) - 1) // seq_len
    pieces = np.zeros(seq_len + 1, np.int64)
    pieces[seq_len] = (counts * (lengths // seq_len)).sum()
    np.add.at(pieces, lengths % seq_len, counts)
    pieces[0] = 0
    return int(pieces.sum()) if packing == "none" else _FITS[packing](pieces, seq_len)[1]


def _best_fit(counts: np.ndarray, seq_len: int) -> tuple[np.ndarray, int]:
    """Rows of pieces, longest first, of which `counts[n]` have length n; and how many rows.

    Equal pieces are placed together: the fullest row with room takes as many as fit, since after
    each of them it is still the fullest, then the next row with as much room.
    """
    room: list[list[int]] = [[] for _ in range(seq_len + 1)]  # rows by free places, last used last
    open_rooms = 0  # bit n is set where room[n] is not empty: the search is one shift
    placed: list[np.ndarray] = []
    rows = 0
    for n in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[n])
        while left:
            fits = open_rooms >> n
            if fits:
                free = n + (fits & -fits).bit_length() - 1
                each = free // n
                take = min(len(room[free]), -(-left // each))
                here = room[free][-take:][::-1]
                del room[free][-take:]
                if not room[free]:
                    open_rooms ^= 1 << free
            else:
                free, each = seq_len, seq_len // n
                take = -(-left // each)
                here = list(range(rows, rows + take))
                rows += take
            some = min(left, take * each)
            placed.append(np.repeat(np.array(here), each)[:some])
            left -= some
            full = some // each
            for kept, ids in (
                (free - each * n, here[:full]),
                (free - some % each * n, here[full:]),
            ):
                if kept and ids:
                    room[kept] += ids
                    open_rooms |= 1 << kept
    return np.concatenate([np.empty(0, np.int64), *placed]), rows


def _first_fit(counts: np.ndarray, seq_len: int) -> tuple[np.ndarray, int]:
    """Does the same into the first row with room; all open rows at once for one length."""
    free = ids = np.empty(0, np.int32)  # rows that are not full
    placed: list[np.ndarray] = []
    rows = 0
    for n in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[n])
        here = np.flatnonzero(free >= n)  # before dividing, which costs ten times as much
        each = free[here] // n
        takes = np.clip(left - (np.cumsum(each) - each), 0, each).astype(np.int32)
        placed.append(np.repeat(ids[here], takes))
        free[here] -= takes * n
        left -= int(takes.sum())
        if left:
            each = seq_len // n
            takes = np.full(-(-left // each), each, np.int32)
            takes[-1] -= takes.sum() - left
            fresh = np.arange(rows, rows + len(takes), dtype=np.int32)
            placed.append(np.repeat(fresh, takes))
            free, ids = np.append(free, seq_len - takes * n), np.append(ids, fresh)
            rows += len(takes)
        if np.count_nonzero(free) < len(free) // 2:
            free, ids = free[free > 0], ids[free > 0]
    return np.concatenate([np.empty(0, np.int64), *placed]), rows


_FITS = {"best_fit": _best_fit, "first_fit": _first_fit}


class Example(NamedTuple):
    """A conversation, or another example that is not learned whole."""

    tokens: np.ndarray
    """Integer ids [n], n >= 2, the BOS first."""
    loss_mask: np.ndarray
    """bool [n]: this token is learned. In a chat: the assistant's, its end token among them."""


def pack_examples(
    examples: Sequence[Example], seq_len: int, packing: Packing = "best_fit"
) -> Batch:
    """All rows [R, T] of examples with loss masks, in the order of the plan.

    A target is learned where the mask holds for the token that is to be predicted, so tokens, mask
    and targets cannot come apart. An example of n tokens takes n - 1 places; a longer one is cut as
    documents are.

    Raises:
        ConfigError: tokens and mask of different lengths, or `packing` is `split`.
    """
    if packing == "split":
        raise ConfigError("packing is split, which has no loss masks", "use best_fit")
    for i, example in enumerate(examples):
        if len(example.tokens) != len(example.loss_mask) or len(example.tokens) < 2:
            raise ConfigError(
                f"example {i} has {len(example.tokens)} tokens and a loss mask of "
                f"{len(example.loss_mask)}",
                "give each token its place in the mask, and two tokens or more",
            )
    inputs = [np.asarray(e.tokens[:-1], np.int32) for e in examples]
    # Cast first: stored tokens are unsigned, and IGNORE is below 0.
    targets = [
        np.where(e.loss_mask[1:], np.asarray(e.tokens[1:], np.int32), IGNORE) for e in examples
    ]
    lengths = np.array([len(tokens) for tokens in inputs], np.int64)
    made = plan(np.cumsum(lengths) - lengths, int(lengths.sum()), seq_len, packing)
    none = np.empty(0, np.int32)
    return made.gather(
        np.arange(len(made)), np.concatenate([none, *inputs]), np.concatenate([none, *targets])
    )


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0 … counts[0]-1, 0 … counts[1]-1, …, int64."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)

"""Bits per byte: how many bits the model needs for each byte of a text, whatever the tokenizer.

The protocol, stated once: every document begins with BOS; a document longer than a row is read
through windows of `seq_len` tokens that advance by `stride`; a window scores only the targets no
earlier window scored, so every byte is scored exactly once and, after the first window, with at
least `seq_len - stride` tokens of context. Windows of several documents are packed into one row
as segments that cannot see each other. Special tokens carry no bytes and score nothing.

    bpb = sum of nats / (ln 2 * sum of bytes)

Shapes: B batch rows, T time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gaia.data.batch import IGNORE, Batch
from gaia.data.packing import place
from gaia.errors import ConfigError, DataError

Scorer = Callable[[Batch], jax.Array]
"""Packed rows -> negative log-likelihood in nats per position [B, T], fp32, 0 where not scored."""


class Score(NamedTuple):
    """Score of a text."""

    bpb: float
    loss: float
    """Mean nats per scored token."""
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(loss), finite whatever the loss is."""
        return math.exp(min(self.loss, 700.0))

    def logged(self, name: str) -> dict[str, float]:
        """The text's figures for the log: `eval/NAME_bpb`, `_loss` and `_perplexity`."""
        return {
            f"eval/{name}_bpb": self.bpb,
            f"eval/{name}_loss": self.loss,
            f"eval/{name}_perplexity": self.perplexity,
        }


def windows(document: np.ndarray, seq_len: int, stride: int) -> Iterable[tuple[np.ndarray, int]]:
    """(tokens of a window and its next one, how many leading targets were scored before)."""
    start, scored = 0, 0
    while scored < len(document) - 1:
        end = min(start + seq_len, len(document) - 1)
        yield document[start : end + 1], scored - start
        scored = end
        start += stride


def pack(
    documents: Iterable[np.ndarray], *, seq_len: int, stride: int, batch_size: int
) -> list[Batch]:
    """Windows of all documents, longest first, into as few rows as best-fit finds.

    Raises:
        ConfigError: a stride that would leave bytes unscored, or never advance.
    """
    if not 1 <= stride <= seq_len:
        raise ConfigError(f"stride is {stride} for windows of {seq_len} tokens", "use 1 .. seq_len")
    pieces = [piece for d in documents for piece in windows(np.asarray(d), seq_len, stride)]
    pieces.sort(key=lambda piece: -len(piece[0]))
    lengths = np.array([len(tokens) - 1 for tokens, _ in pieces], np.int64)
    row_P, count = place(lengths, seq_len, "best_fit")
    rows: list[list[tuple[np.ndarray, int]]] = [[] for _ in range(count)]
    for piece, row in zip(pieces, row_P.tolist(), strict=True):
        rows[row].append(piece)
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [lay_out(batch, batch_size, seq_len) for batch in batches]


def lay_out(rows: Sequence[list[tuple[np.ndarray, int]]], batch_size: int, seq_len: int) -> Batch:
    """Windows (with their leading targets already scored) of each row as arrays."""
    laid = Batch.padding(batch_size, seq_len)
    inputs, targets, positions, segments, *_ = laid
    for b, row in enumerate(rows):
        at = 0
        for segment, (tokens, skip) in enumerate(row, start=1):
            n = len(tokens) - 1
            inputs[b, at : at + n] = tokens[:-1]
            targets[b, at + skip : at + n] = tokens[1 + skip :]
            positions[b, at : at + n] = np.arange(n)
            segments[b, at : at + n] = segment
            at += n
    return laid


def evaluate(
    scorer: Scorer,
    batches: Sequence[Batch],
    token_bytes: np.ndarray,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Scores packed batches; `token_bytes` [V] is 0 for special tokens.

    Raises:
        DataError: the text holds not one byte to score.
    """
    nats, scored_bytes, scored_tokens = 0.0, 0, 0
    pending: list[tuple[jax.Array, np.ndarray, np.ndarray]] = []

    def collect(keep: int) -> None:
        nonlocal nats, scored_bytes, scored_tokens
        while len(pending) > keep:
            nll_BT, bytes_BT, mask_BT = pending.pop(0)
            nats += float(np.asarray(nll_BT, np.float64)[mask_BT].sum())
            scored_bytes += int(bytes_BT[mask_BT].sum())
            scored_tokens += int(mask_BT.sum())

    for i, rows in enumerate(batches):
        bytes_BT = token_bytes[np.maximum(rows.targets_BT, 0)].astype(np.int64)
        mask_BT = (rows.targets_BT != IGNORE) & (bytes_BT > 0)
        pending.append((scorer(rows), bytes_BT, mask_BT))
        collect(keep=1)  # the device works on one batch while the host adds up the one before
        progress(i + 1, len(batches))
    collect(keep=0)
    if scored_bytes == 0:
        raise DataError("the evaluation text has no bytes to score", "give a text with content")
    return Score(
        bpb=nats / (math.log(2) * scored_bytes),
        loss=nats / scored_tokens,
        tokens=scored_tokens,
        bytes=scored_bytes,
    )


def take_tokens(documents: Iterable[np.ndarray], limit: int) -> list[np.ndarray]:
    """Documents from the front, `limit` tokens in all; the last one is cut where it is longer.

    A document of which less than two tokens are left has nothing to score and is left out.
    """
    taken, left = [], limit
    for document in documents:
        if left < 2:
            break
        taken.append(document[:left])
        left -= len(document)
    return taken

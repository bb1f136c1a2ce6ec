"""Unigram and bigram baselines in bits per byte: what counting alone achieves on the same tokens.

A trained model means little without them. Both see exactly the rows that the run saw, are smoothed
with what is best for them on a held-out slice of those rows, and are scored as the model is: every
document begins with BOS, every text token is scored once, special tokens not at all.

Unigram: add-delta, delta tuned. Bigram: the best of interpolated modified Kneser-Ney (Chen &
Goodman 1998, discounts by their closed form), the same discounts over the unigram instead of the
continuation counts, and Jelinek-Mercer with a tuned weight.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from gaia.data.loader import iter_documents
from gaia.data.order import BatchOrder
from gaia.data.packing import Packing
from gaia.data.rows import CacheOptions, TokenRows
from gaia.errors import DataError
from gchat.tokenizer import Tokenizer

MAX_TOKENS = 1 << 24  # counting more changes a bigram by little and takes memory and minutes
HELD_OUT = 0.05  # share of the rows on which the smoothing is chosen
DELTAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

Pairs = tuple[np.ndarray, np.ndarray]  # context and next token, [n] int64 each


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Bits per byte of the n-gram baselines."""

    unigram_bpb: float
    bigram_bpb: float
    smoothing: str
    """The bigram smoothing that was best on the held-out rows."""
    tokens: int
    """Training tokens counted."""
    bytes: int
    """Validation bytes scored."""


def ngram_baselines(
    data_dir: str | Path,
    tokens: int,
    *,
    seq_len: int = 512,
    batch_size: int = 32,
    seed: int = 0,
    documents: Iterable[np.ndarray] | None = None,
    packing: Packing = "split",
    cache: CacheOptions | None = None,
) -> Baselines:
    """Bits per byte of both baselines on the validation split.

    Args:
        data_dir: a prepared data set with its tokenizer.
        tokens: training tokens that the run saw; beyond one epoch, or MAX_TOKENS, no more are
            counted.
        seq_len: T of the run; with `seed` it fixes which rows came first.
        batch_size: B of the run, which a partial batch is rounded down to.
        seed: data seed of the run.
        documents: token arrays to score instead of the whole validation split, BOS first.
        packing: how the run made rows of documents.
        cache: of the shards of a bucket.

    Raises:
        DataError: missing data, or nothing to score.
    """
    tokenizer = Tokenizer.load(data_dir)
    rows = TokenRows(data_dir, "train", seq_len, packing=packing, cache=cache)
    order = BatchOrder(rows.counts, rows.manifest.window, seed)
    wanted = max(tokens // (batch_size * seq_len), 1) * batch_size
    count = min(wanted, len(rows), max(MAX_TOKENS // seq_len, 1))
    ids = order.row_ids(0, count)
    pieces = [rows.gather(ids[i : i + 1024]) for i in range(0, count, 1024)]
    rows.close()
    inputs = np.concatenate([piece.inputs_BT for piece in pieces])
    targets = np.concatenate([piece.targets_BT for piece in pieces])
    if documents is None:
        documents = iter_documents(data_dir, "val")
    return score(inputs, targets, list(documents), tokenizer.token_bytes())


def score(
    inputs_RT: np.ndarray,
    targets_RT: np.ndarray,
    documents: list[np.ndarray],
    token_bytes_V: np.ndarray,
) -> Baselines:
    """The same from arrays: training rows [R, T], validation documents, bytes of each id."""
    vocab = len(token_bytes_V)
    possible = np.flatnonzero(token_bytes_V)  # the ids that text can hold
    test = _text_pairs(
        np.concatenate([d[:-1] for d in documents] or [[]]).astype(np.int64),
        np.concatenate([d[1:] for d in documents] or [[]]).astype(np.int64),
        token_bytes_V,
    )
    test_bytes = int(token_bytes_V[test[1]].astype(np.int64).sum())
    if not test_bytes:
        raise DataError("the validation split holds no text to score", "prepare it with more text")
    held = max(1, round(len(inputs_RT) * HELD_OUT))
    fit, tune, everything = (
        _text_pairs(inputs_RT[part].ravel(), targets_RT[part].ravel(), token_bytes_V)
        for part in (slice(None, -held), slice(-held, None), slice(None))
    )
    if not len(fit[0]) or not len(tune[0]):  # a single row: nothing to tune on
        fit = tune = everything
    delta = min(DELTAS, key=lambda d: _bits(_unigram(fit[1], possible, vocab, d)[tune[1]]))
    counted = _Counted.of(fit, possible, vocab, delta)
    candidates = _smoothings()
    smoothing = min(candidates, key=lambda name: _bits(candidates[name](counted, tune)))
    counted = _Counted.of(everything, possible, vocab, delta)
    bigram = candidates[smoothing](counted, test)
    unigram = counted.unigram_V[test[1]]
    return Baselines(
        unigram_bpb=_bits(unigram) * len(unigram) / test_bytes,
        bigram_bpb=_bits(bigram) * len(bigram) / test_bytes,
        smoothing=smoothing,
        tokens=int((targets_RT >= 0).sum()),
        bytes=test_bytes,
    )


def _text_pairs(contexts: np.ndarray, tokens: np.ndarray, token_bytes_V: np.ndarray) -> Pairs:
    """Only pairs whose second token is text; special tokens are never predicted."""
    text = (tokens >= 0) & (token_bytes_V[tokens] > 0)  # -1 marks padding of packed rows
    return contexts[text].astype(np.int64), tokens[text].astype(np.int64)


def _bits(probabilities: np.ndarray) -> float:
    """Mean bits per token."""
    return float(-np.log2(probabilities).mean())


def _unigram(tokens: np.ndarray, possible: np.ndarray, vocab: int, delta: float) -> np.ndarray:
    """p(w) [V], add-delta over the ids that text can hold."""
    p_V = np.zeros(vocab)
    p_V[possible] = np.bincount(tokens, minlength=vocab)[possible] + delta
    return p_V / p_V.sum()


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Counts of the training pairs; V is the padded vocabulary."""

    codes: np.ndarray
    """context * V + next of each pair seen, sorted [pairs] int64."""
    counts: np.ndarray
    """Times that each was seen, [pairs] int64."""
    total_V: np.ndarray
    """Times that each token was a context."""
    unigram_V: np.ndarray
    """p(w) from how often a token was seen."""
    continuation_V: np.ndarray
    """p(w) from how many contexts a token was seen in (Kneser & Ney 1995)."""

    @classmethod
    def of(cls, pairs: Pairs, possible: np.ndarray, vocab: int, delta: float) -> "_Counted":
        codes, counts = np.unique(pairs[0] * vocab + pairs[1], return_counts=True)
        return cls(
            codes,
            counts,
            np.bincount(pairs[0], minlength=vocab),
            _unigram(pairs[1], possible, vocab, delta),
            _unigram(codes % vocab, possible, vocab, delta),
        )

    def lookup(self, pairs: Pairs) -> np.ndarray:
        """Count of each pair, 0 where it was never seen."""
        wanted = pairs[0] * len(self.total_V) + pairs[1]
        at = np.minimum(np.searchsorted(self.codes, wanted), len(self.codes) - 1)
        return np.where(self.codes[at] == wanted, self.counts[at], 0)


def _smoothings() -> dict[str, Callable[[_Counted, Pairs], np.ndarray]]:
    """Candidates by name: (counts, pairs) -> p(next | context) [n]."""
    return {
        "kneser-ney": lambda c, pairs: _discounted(c, pairs, c.continuation_V),
        "absolute discounting": lambda c, pairs: _discounted(c, pairs, c.unigram_V),
        **{
            f"jelinek-mercer {weight}": lambda c, pairs, weight=weight: _mixed(c, pairs, weight)
            for weight in WEIGHTS
        },
    }


def _mixed(counted: _Counted, pairs: Pairs, weight: float) -> np.ndarray:
    """weight * maximum likelihood + (1 - weight) * unigram; unigram alone in a new context."""
    total = counted.total_V[pairs[0]]
    lower = counted.unigram_V[pairs[1]]
    higher = counted.lookup(pairs) / np.maximum(total, 1)
    return np.where(total > 0, weight * higher + (1 - weight) * lower, lower)


def _discounted(counted: _Counted, pairs: Pairs, lower_V: np.ndarray) -> np.ndarray:
    """Interpolated bigram with the three discounts of modified Kneser-Ney."""
    vocab = len(lower_V)
    discounts = _discounts(counted.counts)
    taken = discounts[np.minimum(counted.counts, 3)]
    left_V = np.bincount(counted.codes // vocab, weights=taken, minlength=vocab)
    seen = counted.lookup(pairs)
    lower = lower_V[pairs[1]]
    total = counted.total_V[pairs[0]]
    higher = np.maximum(seen - discounts[np.minimum(seen, 3)], 0) + left_V[pairs[0]] * lower
    return np.where(total > 0, higher / np.maximum(total, 1), lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts [4] of pairs seen 0, 1, 2 and 3 or more times (Chen & Goodman 1998, eq. 26)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not min(n1, n2, n3):  # too little text for the formula
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    discounts = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *np.clip(discounts, [0.05] * 3, [0.95, 1.95, 2.95])])

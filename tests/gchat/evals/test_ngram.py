"""The n-gram baselines against a slow version of the same formulas, and their use of rows."""

import collections
import math

import numpy as np
import pytest

from gaia.data.loader import make_loader
from gaia.data.shards import write_shards
from gaia.errors import DataError
from gchat import tokenizer as tokenizers
from gchat.evals import ngram

BOS, V = 9, 12
BYTES = np.array([1, 2, 1, 3, 1, 1, 1, 1, 0, 0, 0, 0], np.uint16)  # ids 0-7 are text


def stream(count, seed):
    rng = np.random.default_rng(seed)
    tokens = [BOS]
    while len(tokens) < count:  # each token tends to be followed by the next
        last = tokens[-1] % 8
        tokens.append(BOS if rng.random() < 0.02 else int((last + rng.zipf(1.7)) % 8))
    return np.array(tokens)


def slow_kneser_ney(pairs, test, delta):
    """Interpolated modified Kneser-Ney by dictionaries."""
    seen = collections.Counter(pairs)
    total = collections.Counter(v for v, _ in pairs)
    n = collections.Counter(seen.values())
    y = n[1] / (n[1] + 2 * n[2])
    d = [0.0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    d = [0.0, *(min(max(x, 0.05), k - 0.05) for k, x in enumerate(d[1:], 1))]
    before = collections.Counter(w for _, w in seen)
    lower = {w: (before[w] + delta) / (len(seen) + delta * 8) for w in range(8)}
    result = []
    for v, w in test:
        left = sum(d[min(c, 3)] for (a, _), c in seen.items() if a == v) / total[v]
        here = seen[v, w]
        result.append(max(here - d[min(here, 3)], 0) / total[v] + left * lower[w])
    return result


def test_kneser_ney_is_the_textbook_one_and_sums_to_one():
    tokens = stream(700, 0)
    train = ngram._text_pairs(tokens[:-1], tokens[1:], BYTES)
    counted = ngram._Counted.of(train, np.arange(8), V, 0.1)
    every = (np.repeat(np.arange(8), 8), np.tile(np.arange(8), 8))
    for name, smoothing in ngram._smoothings().items():
        p = smoothing(counted, every).reshape(8, 8)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-12, err_msg=name)
    pairs = list(zip(*(side.tolist() for side in train), strict=True))
    expected = slow_kneser_ney(pairs, list(zip(*(s.tolist() for s in every), strict=True)), 0.1)
    np.testing.assert_allclose(ngram._smoothings()["kneser-ney"](counted, every), expected)


def test_bits_per_byte_of_a_known_case():
    """Text that repeats one pair costs nothing by bigram and one bit a token by unigram."""
    rows = np.tile([0, 1], (200, 33))[:, :65]
    document = np.array([BOS, *[0, 1] * 500])
    found = ngram.score(rows[:, :-1], rows[:, 1:], [document], BYTES)
    assert found.bytes == 500 * (1 + 2)
    assert found.unigram_bpb == pytest.approx(1000 / 1500, rel=1e-2)
    assert found.bigram_bpb < 0.03


def test_specials_are_neither_predicted_nor_counted():
    tokens = stream(4000, 1)
    rows = tokens[: 64 * 61].reshape(61, 64)
    document = stream(500, 2)
    split = np.flatnonzero(document == BOS)
    whole = ngram.score(rows[:, :-1], rows[:, 1:], np.split(document, split[1:]), BYTES)
    assert whole.bytes == BYTES[document].sum()
    assert 0 < whole.bigram_bpb < whole.unigram_bpb < math.log2(8)


def test_only_the_rows_of_the_run_are_counted(tmp_path):
    texts = [f"text {i} about nothing much, number {i * i}" for i in range(300)]
    tokenizer = tokenizers.train_bpe(texts, 300)
    tokenizer.save(tmp_path)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    write_shards(tmp_path, ids[:270], ids[270:], tokenizer.info)
    few = ngram.ngram_baselines(tmp_path, 16 * 4 * 3, seq_len=16, batch_size=4, seed=5)
    assert few.tokens == 16 * 4 * 3
    with make_loader(tmp_path, seq_len=16, batch_size=4, seed=5) as loader:
        batches = [next(loader) for _ in range(3)]
    rows = [np.concatenate([b[i] for b in batches]) for i in range(2)]
    assert ngram.score(*rows, [np.array(d) for d in ids[270:]], tokenizer.token_bytes()) == few
    everything = ngram.ngram_baselines(tmp_path, 10**12, seq_len=16, batch_size=4, seed=5)
    assert everything.tokens > 20 * few.tokens
    assert everything.bigram_bpb < few.bigram_bpb


def test_no_text_to_score_is_refused():
    with pytest.raises(DataError, match="no text to score"):
        ngram.score(np.zeros((2, 4), int), np.zeros((2, 4), int), [], BYTES)

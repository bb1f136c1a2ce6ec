"""Bits per byte: the protocol, and that packing changes nothing."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import tiny
from gaia import parallel
from gaia.errors import ConfigError, DataError
from gchat.evals import bpb
from gchat.evals.periodic import encode_file
from gchat.tokenizer import train_bpe
from gchat.train_step import make_scorer

BYTES = np.concatenate([np.random.default_rng(0).integers(1, 9, tiny.VOCAB - 4), np.zeros(32, int)])
BOS = tiny.VOCAB - 1


def document(n, seed):
    """BOS and n - 1 tokens of text."""
    text = np.random.default_rng(seed).integers(0, tiny.VOCAB - 4, n - 1)
    return np.concatenate([[BOS], text]).astype(np.int32)


def uniform(rows):
    return np.where(rows.targets_BT == bpb.IGNORE, 0.0, math.log(tiny.VOCAB)).astype(np.float32)


def test_a_uniform_model_costs_the_log_of_the_vocabulary():
    documents = [document(n, seed=n) for n in (5, 70, 33, 200)]
    tokens = sum(len(d) - 1 for d in documents)
    size = sum(int(BYTES[d].sum()) for d in documents)
    for stride in (1, 16, 32):
        rows = bpb.pack(documents, seq_len=32, stride=stride, batch_size=4)
        score = bpb.evaluate(uniform, rows, BYTES)
        assert (score.tokens, score.bytes) == (tokens, size)
        assert score.bpb == pytest.approx(math.log2(tiny.VOCAB) * tokens / size, rel=1e-6)
        assert score.loss == pytest.approx(math.log(tiny.VOCAB), rel=1e-6)
        assert score.perplexity == pytest.approx(tiny.VOCAB, rel=1e-5)


def test_special_tokens_are_read_but_not_scored():
    d = document(20, seed=1)
    d[7] = BOS  # a special in the middle of a text
    score = bpb.evaluate(uniform, bpb.pack([d], seq_len=32, stride=32, batch_size=1), BYTES)
    assert score.tokens == 18
    assert score.bytes == BYTES[d].sum()


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=8),
    seq_len=st.integers(1, 40),
    share=st.floats(0.01, 1.0),
    batch_size=st.integers(1, 4),
)
def test_every_token_is_scored_once_with_its_own_context(lengths, seq_len, share, batch_size):
    stride = max(1, round(seq_len * share))
    # Each token's id says where it stands: document * 100 + index.
    documents = [100 * i + np.arange(n) for i, n in enumerate(lengths)]
    scored = []
    for rows in bpb.pack(documents, seq_len=seq_len, stride=stride, batch_size=batch_size):
        assert all(a.shape == (batch_size, seq_len) and a.dtype == np.int32 for a in rows[:4])
        for b, t in zip(*np.nonzero(rows.targets_BT != bpb.IGNORE), strict=True):
            target = int(rows.targets_BT[b, t])
            segment = rows.segments_BT[b]
            context = rows.inputs_BT[b, : t + 1][segment[: t + 1] == segment[t]]
            assert segment[t] > 0
            # What it sees: the tokens right before it, in order, numbered from 0.
            assert (context == np.arange(target - len(context), target)).all()
            assert rows.positions_BT[b, t] == len(context) - 1
            assert len(context) >= min(target % 100, seq_len - stride + 1)
            scored.append(target)
    assert sorted(scored) == [100 * i + k for i, n in enumerate(lengths) for k in range(1, n)]


@functools.cache
def scorer():
    config = tiny.train_config()
    graph, params = tiny.make(config.model)
    return (
        functools.partial(make_scorer(graph, config, parallel.make_mesh()), params),
        graph,
        params,
    )


def nats(documents, stride=16):
    run = scorer()[0]
    score = bpb.evaluate(run, bpb.pack(documents, seq_len=32, stride=stride, batch_size=8), BYTES)
    return score.bpb * score.bytes


def test_documents_packed_together_score_as_each_alone():
    documents = [document(n, seed=n) for n in (9, 14, 3, 60, 33, 2, 32, 31, 100, 5)]
    together = nats(documents)
    assert together == pytest.approx(sum(nats([d]) for d in documents), rel=1e-6)
    assert together == pytest.approx(nats(documents[::-1]), rel=1e-6)


def test_a_short_document_scores_as_the_plain_forward_pass():
    _, graph, params = scorer()
    d = document(33, seed=3)
    logits = np.asarray(tiny.logits(graph, params, d[None, :-1]), np.float64)[..., : tiny.VOCAB]
    expected = reference.nll(logits, d[None, 1:]).sum() / math.log(2)
    assert nats([d]) == pytest.approx(expected, rel=1e-6)


def test_more_context_never_changes_which_bytes_count():
    d = document(150, seed=4)
    sizes = {
        bpb.evaluate(uniform, bpb.pack([d], seq_len=32, stride=s, batch_size=8), BYTES).bytes
        for s in range(1, 33)
    }
    assert sizes == {int(BYTES[d].sum())}


def test_a_text_without_bytes_is_refused():
    with pytest.raises(DataError, match="no bytes to score"):
        bpb.evaluate(uniform, bpb.pack([np.array([BOS])], seq_len=8, stride=8, batch_size=1), BYTES)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_would_skip_bytes_is_refused(stride):
    with pytest.raises(ConfigError, match=f"stride is {stride}"):
        bpb.pack([document(50, seed=0)], seq_len=8, stride=stride, batch_size=1)


def test_take_tokens_keeps_whole_documents_and_at_least_one():
    documents = [document(n, seed=n) for n in (30, 20, 10)]
    assert [len(d) for d in bpb.take_tokens(documents, 55)] == [30, 20]
    assert [len(d) for d in bpb.take_tokens(documents, 5)] == [30]


def test_a_text_that_is_not_utf_8_is_refused(tmp_path):
    """Ten letters with an umlaut in Latin-1 are 10 bytes there, and 12 as U+FFFD."""
    path = tmp_path / "latin1.txt"
    path.write_bytes("für Bücher".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 at byte 1; convert it"):
        encode_file(str(path), train_bpe(["ab"], 300))

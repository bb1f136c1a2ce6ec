"""The scorer against one whole forward pass for each sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from gaia import parallel
from gaia.errors import ConfigError
from gchat import train_state
from gchat.score import Scorer

MODELS = {
    "rope": {"seq_len": 64},
    "windows": {"seq_len": 64, "window_pattern": "SL", "window": 12},
    "learned": {"seq_len": 300, "positions": "learned", "kv_heads": 1},
}


def scorer(batch_tokens=1024, **model):
    """(scorer, parameters, logits [T, V] of one sequence) on one device."""
    config = tiny.train_config(model=model)
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    graph = train_state.graphdef(config)
    _, params = tiny.make(config.model)

    def logits(tokens):
        row = np.zeros((1, config.model.seq_len), np.int32)
        row[0, : len(tokens)] = tokens
        return np.asarray(tiny.logits(graph, params, row), np.float64)[0, : len(tokens)]

    return Scorer(graph, config, mesh, batch_tokens=batch_tokens), params, logits


def questions(seq_len, count=25, seed=0):
    """Prompts of many lengths, some too long, each with several ends, some of them empty."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        context = [1, *rng.integers(0, tiny.VOCAB, rng.integers(0, round(1.3 * seq_len)))]
        for _ in range(rng.integers(1, 5)):
            pairs.append((context, rng.integers(0, tiny.VOCAB, rng.integers(0, 9))))
    return pairs


def expected(logits, context, continuation, seq_len):
    """Log-likelihood of each token that counts, and whether each is the argmax."""
    tokens = np.array([*context, *continuation], np.int32)[-seq_len:]
    count = min(len(continuation), len(tokens) - 1)
    log_p = logits(tokens)
    log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))  # padding columns are -inf
    at = range(len(tokens) - count, len(tokens))
    greedy = all(log_p[t - 1].argmax() == tokens[t] for t in at)
    return np.array([log_p[t - 1, tokens[t]] for t in at]), greedy


@pytest.mark.parametrize(
    "name", ["rope", pytest.param("windows", marks=pytest.mark.slow), "learned"]
)
def test_matches_a_whole_forward_pass(name):
    model = MODELS[name]
    scores, params, logits = scorer(**model)
    pairs = questions(model["seq_len"], 25 if name == "rope" else 8)
    # The most likely ends too, or no greedy one would be among them.
    for context, _ in pairs[:6]:
        best = logits(np.array(context[-40:]))[-1].argmax()
        pairs.append((context[-40:], [best]))
    greedy = 0
    for (context, end), score in zip(pairs, scores.loglikelihood(params, pairs), strict=True):
        per_token, is_greedy = expected(logits, context, end, model["seq_len"])
        np.testing.assert_allclose(score.per_token, per_token, atol=1e-5)
        assert score.sum == pytest.approx(per_token.sum(), abs=1e-4)
        assert score.greedy == is_greedy
        greedy += is_greedy and len(end) > 0
    assert greedy >= 6
    assert scores.forwarded.used < scores.forwarded.plain


def test_windows_of_a_long_iterable_give_the_same():
    scores, params, _ = scorer(batch_tokens=256, seq_len=64)
    pairs = questions(64, 120, seed=3)
    whole = [score.sum for score in scores.loglikelihood(params, pairs)]
    batches = list(scores.stream(params, iter(pairs)))
    assert len(batches) > 30
    found = dict(pair for batch in batches for pair in batch)
    np.testing.assert_allclose([found[n].sum for n in range(len(pairs))], whole, atol=1e-4)


def test_the_last_tokens_count_and_bos_is_the_first_to_go():
    scores, params, _ = scorer(seq_len=64)
    rng = np.random.default_rng(5)
    text, end = rng.integers(0, tiny.VOCAB, 80).tolist(), [7, 8, 9]
    cropped, whole = scores.loglikelihood(params, [([1, *text], end), (text[-61:], end)])
    np.testing.assert_array_equal(cropped.per_token, whole.per_token)
    # A continuation that fills the window: its first token has nothing before it.
    (filled,) = scores.loglikelihood(params, [([1], text)])
    assert len(filled.per_token) == 63


def test_of_equal_logits_the_first_id_is_the_likely_one():
    scores, params, _ = scorer(seq_len=64, tied=False)
    params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    zero, one = scores.loglikelihood(params, [([1, 2], [0, 0]), ([1, 2], [0, 1])])
    assert (zero.greedy, one.greedy) == (True, False)
    assert zero.sum == pytest.approx(-2 * np.log(tiny.VOCAB), rel=1e-5)


def test_what_cannot_be_scored_is_refused():
    scores, params, _ = scorer(seq_len=64)
    for pair, message in (
        (([], [3]), "empty context; begin contexts with BOS"),
        (([1], [tiny.VOCAB]), f"holds id {tiny.VOCAB}, the model's are 0 to {tiny.VOCAB - 1}"),
        (([1], [-1]), "holds id -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            scores.loglikelihood(params, [([1], [2]), pair])
    assert scores.loglikelihood(params, []) == []

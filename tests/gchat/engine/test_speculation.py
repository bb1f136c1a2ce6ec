"""Prompt lookup: the same texts in fewer steps, drawn from the same distribution."""

import functools
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

import tiny
from gaia.errors import ConfigError
from gchat.engine.engine import Engine
from gchat.engine.lookup import draft
from gchat.engine.requests import MAX_DRAFT, Request, SamplingConfig

SEQ_LEN, K = 96, 4
drafted = jax.jit(draft, static_argnums=2)


def draft_by_hand(ids, k):
    """The ids behind the latest of the longest matches of up to 4 last ids, repeated."""
    for n in range(min(4, len(ids) - 1), 0, -1):
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - n : end] == ids[-n:]:
                return [(ids[end:] * k)[j] for j in range(k)]
    return [-1] * k


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2), max_size=24), min_size=3, max_size=3))
@example(rows=[[], [1], [2, 2]])
@example(rows=[[1, 2] * 6, [1, 2, 1, 2, 0, 1, 2], [0] * 24])
def test_a_draft_continues_the_latest_of_the_longest_matches(rows):
    ids_BS = np.full((3, 24), 1, np.int32)  # behind a row's end lies what others left
    for b, row in enumerate(rows):
        ids_BS[b, : len(row)] = row
    position_B = np.array([len(row) - 1 for row in rows], np.int32)
    expected = [draft_by_hand(row, K) for row in rows]
    np.testing.assert_array_equal(drafted(ids_BS, position_B, K), expected)


# ── The same texts ──────────────────────────────────────────────────────────────────────────────


@functools.cache
def model():
    """Windowed and grouped attention: a draft must see what it sees without one.

    Attention weighs little, so that the next token depends on the last one most of all, and greedy
    texts run in circles.
    """
    config = tiny.gpt_config(seq_len=SEQ_LEN, kv_heads=1, window_pattern="SL", window=8)
    graph, params = tiny.make(config)
    params["blocks"]["attn"]["out"]["kernel"] *= 0.1
    return graph, params


def make_engine(speculate, **options):
    defaults = {"seq_len": SEQ_LEN, "stop_ids": (99,), "slots": 3, "piece": 16}
    return Engine(*model(), speculate=speculate, **(defaults | options))


@functools.cache
def shared(speculate):
    return make_engine(speculate)


PHRASE = [5, 17, 60, 2, 33, 41]
PROMPTS = [PHRASE * 4, [7], [1, 2, 3] * 9 + [*range(20, 50)], PHRASE * 2 + [9, 9, 9, 9]]
SAMPLING = [
    SamplingConfig(0.0),
    SamplingConfig(0.8, top_k=3, seed=4),
    SamplingConfig(1.2, top_p=0.3, min_p=0.02, seed=6),
    SamplingConfig(0.3, seed=7, repetition_penalty=1.3),
]


def answers(engine, sampling, **options):
    """(ids, log-probabilities, finishes) of two samples of each prompt, all at once."""
    streams = [
        engine.submit(Request(p, 200, sampling, n=2, logprobs=2, **options)) for p in PROMPTS
    ]
    ids, logprobs, finishes = {}, {}, {}
    for r, stream in enumerate(streams):
        for event in stream:
            where = r, event.index
            ids.setdefault(where, []).extend(event.ids)
            logprobs.setdefault(where, []).extend(p.logprob for p in event.logprobs)
            finishes[where] = event.finish
    return ids, logprobs, finishes


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_texts_are_those_without_drafts(sampling):
    """Greedy, sampled, penalised; up to the last position that the model has."""
    plain, quick = (answers(shared(k), sampling) for k in (0, K))
    assert quick[0] == plain[0] and quick[2] == plain[2]
    for where, values in plain[1].items():
        np.testing.assert_allclose(quick[1][where], values, atol=1e-4)
    assert shared(0).tokens_per_step == 1


def greedy(speculate, tokens=60, **options):
    """(ids after the first prompt, the engine)."""
    engine = make_engine(speculate, stop_ids=(), **options)
    [ids] = engine.generate([PROMPTS[0]], max_new_tokens=tokens, sampling=SAMPLING[0])
    return ids, engine


def test_drafts_save_steps_where_a_text_repeats_itself():
    (ids, engine), (plain, other) = greedy(K), greedy(0)
    assert ids == plain and len(ids) == 60
    assert other.tokens_per_step == 1 and 1.5 < engine.tokens_per_step <= K + 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_texts_are_those_without_drafts_in_fewer_bytes(form):
    """Rounding to fewer bits may turn a tie: then the two first choices were close."""
    plain, quick = (answers(make_engine(k, weights=form, kv="int8"), SAMPLING[0]) for k in (0, K))
    for where, ids in plain[0].items():
        other = quick[0][where]
        same = next((i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b), None)
        np.testing.assert_allclose(
            quick[1][where][:same], plain[1][where][:same], atol=0.05 if form == "int8" else 0.02
        )


def test_a_stop_id_and_a_stop_text_end_an_answer_within_a_draft():
    ids, _ = greedy(0)
    stop = ids[41]
    text = letters(ids).decode()
    for k in (0, K):
        engine = make_engine(k, decode_bytes=letters)
        events = list(engine.submit(Request(PROMPTS[0], 60, SAMPLING[0], stop_ids=(stop,))))
        assert [i for e in events for i in e.ids] == ids[: ids.index(stop)]
        events = list(engine.submit(Request(PROMPTS[0], 60, SAMPLING[0], stop=(text[37:45],))))
        assert "".join(e.text for e in events) == text[: text.index(text[37:45])]
        assert engine.idle


def letters(ids):
    return bytes(97 + i % 26 for i in ids)


class Alternating:
    """Allows 1 and 2 in turn: each mask depends on the token before."""

    def __init__(self):
        self.next = 1

    def allowed(self):
        words = np.zeros(-(-tiny.PADDED // 32), np.uint32)
        words[0] = 1 << self.next
        return words

    def accept(self, token):
        assert token == self.next
        self.next = 3 - token


def test_a_grammar_is_asked_after_each_token_while_others_draft():
    engine = make_engine(K, stop_ids=())
    free = engine.submit(Request(PROMPTS[0], 40, SAMPLING[0]))
    bound = engine.submit(Request([1, 2] * 9, 40, SAMPLING[1], mask=Alternating))
    ids = [i for event in bound for i in event.ids]
    assert ids == [1, 2] * 20
    assert [i for event in free for i in event.ids] == greedy(0, 40)[0]
    assert engine.tokens_per_step > 1


# ── The same distribution ───────────────────────────────────────────────────────────────────────

VOCAB, DRAWS, HOT = 6, 2000, 2.5


@functools.cache
def small_model():
    """Six ids, so that drafts come true often."""
    config = tiny.GPTConfig(
        depth=1, dim=32, head_dim=16, hidden=32, seq_len=32, compute_dtype="float32"
    ).derive(VOCAB, 128)  # fmt: skip
    return config, *tiny.make(config, seed=3)


def test_draws_under_speculation_follow_the_models_distribution():
    """Chi-square of the next two tokens against the full forward pass, and the very same draws."""
    _, graph, params = small_model()
    prompts = [[0, 1, x, 3, 0, 1, x, 3, 0, 1] for x in range(VOCAB)]  # x is drafted
    logits = np.asarray(tiny.logits(graph, params, np.array(prompts, np.int32)))
    prompt = prompts[int(np.argmax([logits[x, -1, x] for x in range(VOCAB)]))]
    drawn = {}
    for k in (0, K):
        engine = Engine(graph, params, seq_len=32, stop_ids=(), slots=8, piece=16, speculate=k)
        streams = [
            engine.submit(Request(prompt, 2, SamplingConfig(HOT, seed=s), n=500))
            for s in range(DRAWS // 500)
        ]
        drawn[k] = [joined(stream) for stream in streams]
    assert drawn[K] == drawn[0]
    assert engine.tokens_per_step > 1.1
    counts = Counter(pair for answers in drawn[K] for pair in answers.values())
    rows = np.array([[*prompt, a] for a in range(VOCAB)], np.int32)
    logits = np.asarray(tiny.logits(graph, params, rows), np.float64)[..., :VOCAB] / HOT
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = chance[0, len(prompt) - 1][:, None] * chance[:, len(prompt)]
    observed = np.array([[counts[a, b] for b in range(VOCAB)] for a in range(VOCAB)])
    assert observed.sum() == DRAWS and (DRAWS * expected).min() > 5
    assert stats.chisquare(observed.ravel(), DRAWS * expected.ravel()).pvalue > 1e-3


def joined(stream):
    """{sample: its ids}."""
    ids = {}
    for event in stream:
        ids[event.index] = ids.get(event.index, ()) + event.ids
    return ids


def test_what_cannot_be_drafted_is_refused():
    for wrong in (-1, MAX_DRAFT + 1):
        with pytest.raises(ConfigError, match=f"speculate is {wrong}; use 0"):
            make_engine(wrong)

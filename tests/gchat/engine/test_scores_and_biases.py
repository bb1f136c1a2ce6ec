"""Log-probabilities of prompts, and additions to logits, against the model run over whole rows."""

import functools

import jax
import numpy as np
import pytest

import tiny
from gaia.errors import ConfigError
from gchat.engine.engine import Engine
from gchat.engine.requests import Request, SamplingConfig

PROMPT = [int(i) for i in tiny.tokens(45)]
GREEDY = SamplingConfig(0.0)


@functools.cache
def model():
    return tiny.make(tiny.gpt_config(seq_len=64, kv_heads=1))


def make_engine():
    return Engine(*model(), seq_len=64, stop_ids=(), slots=2, piece=16)


def reference(ids):
    logits_TV = tiny.logits(*model(), np.array([ids], np.int32))[0]
    return np.asarray(jax.nn.log_softmax(logits_TV, axis=-1))


@pytest.mark.parametrize("length", [1, 2, 17, 45])
def test_a_prompt_is_scored_whole_whatever_was_read_before(length):
    engine = make_engine()
    list(engine.submit(Request(PROMPT, 2, GREEDY)))  # so that there is something to take over
    request = Request(PROMPT[:length], 3, GREEDY, n=2, prompt_logprobs=2)
    events = list(engine.submit(request))
    (scored,) = [e for e in events if e.prompt_logprobs is not None]
    assert scored.index == 0 and events.index(scored) == min(
        i for i, e in enumerate(events) if e.index == 0
    )
    expected = reference(PROMPT[:length])
    assert [p.id for p in scored.prompt_logprobs] == PROMPT[1:length]
    for i, one in enumerate(scored.prompt_logprobs):
        assert one.logprob == pytest.approx(expected[i, one.id], abs=2e-5)
        best = expected[i].argsort()[::-1][:2]
        assert [number for number, _ in one.top] == best.tolist()
        assert (one.top[0][1] == one.logprob) == (best[0] == one.id)  # one float where one token
    answers = [[i for e in events if e.index == index for i in e.ids] for index in (0, 1)]
    alone = make_engine().generate([PROMPT[:length]], max_new_tokens=3, sampling=GREEDY)
    assert answers == [alone[0], alone[0]]
    assert [e.cached for e in events if e.finish and e.index == 0] == [0]


def test_what_was_scored_is_not_taken_over():
    """Its keys come from another program: reuse would change the last bits of an answer."""
    engine = make_engine()
    list(engine.submit(Request(PROMPT, 1, GREEDY, prompt_logprobs=0)))
    (*_, last) = engine.submit(Request(PROMPT, 1, GREEDY))
    assert last.cached == 0


def test_a_bias_moves_the_choice_and_no_log_probability():
    (free,) = make_engine().submit(Request(PROMPT, 1, GREEDY, logprobs=1))
    best, logprob = free.ids[0], free.logprobs[0].logprob
    engine = make_engine()
    banned, beside = (
        engine.submit(Request(PROMPT, 1, GREEDY, logprobs=1, logit_bias=bias))
        for bias in ({best: -100.0}, {})
    )
    (banned,), (beside,) = list(banned), list(beside)
    assert beside.ids == (best,)  # the neighbour's row has no bias
    runner_up = reference(PROMPT)[-1].argsort()[-2]
    assert banned.ids == (runner_up,)
    assert banned.logprobs[0].top == ((best, pytest.approx(logprob, abs=1e-6)),)
    # A drawn token: the odds of two ids are moved by what the bias says, at its temperature.
    warm = [SamplingConfig(2.0, seed=seed) for seed in range(40)]
    forced = {7: 100.0}
    ids = {
        e.ids[0]
        for s in warm
        for e in engine.submit(Request([3], 1, s, logit_bias=forced))
        if e.ids
    }
    assert ids == {7}
    again = engine.generate([PROMPT], max_new_tokens=1, sampling=GREEDY)
    assert again == [[best]]  # the row's next request has none


def test_what_cannot_work_is_refused():
    engine = make_engine()
    for fields in ({"prompt_logprobs": 21}, {"logit_bias": {1000: 1.0}},
                   {"logit_bias": {1: float("nan")}}):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(fields))):
            engine.submit(Request([1], 1, **fields))
    assert engine.idle

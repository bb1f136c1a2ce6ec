"""Decoding with the KV cache against the full forward pass, and the sampling rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from gaia.errors import ConfigError
from gchat.engine import engine
from gchat.engine.engine import Engine
from gchat.engine.requests import SamplingConfig

GREEDY = SamplingConfig(temperature=0.0)
SEQ_LEN = 64  # longer than the prompts, so that the answers are as long as asked for
CONFIGS = {
    "gqa_window": {"kv_heads": 1, "window_pattern": "SL", "window": 8},
    "learned_untied_mha": {"positions": "learned", "qk_norm": False},
}


@functools.cache
def model(name="gqa_window"):
    return tiny.make(tiny.gpt_config(seq_len=SEQ_LEN, **CONFIGS[name]))


def full_logits(name, ids):
    """Logits after each token, by the full forward pass over a row padded to SEQ_LEN."""
    row = np.pad(np.asarray(ids, np.int32), (0, SEQ_LEN - len(ids)))[None]
    return np.asarray(tiny.logits(*model(name), row))[0, : len(ids)]


def greedy_by_hand(name, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(full_logits(name, ids)[-1].argmax()))
    return ids[len(prompt) :]


PROMPTS = [[7, 3, 11, 60, 2], [5], [*range(20, 60)], [1, 2, 3]]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_decoding_of_unequal_prompts_equals_the_full_forward_pass(name):
    got = Engine(*model(name), seq_len=SEQ_LEN, stop_ids=()).generate(
        PROMPTS, max_new_tokens=20, sampling=GREEDY
    )
    assert [len(ids) for ids in got] == [20] * 4
    for prompt, ids in zip(PROMPTS, got, strict=True):
        assert ids == greedy_by_hand(name, prompt, 20)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_logits_equal_the_full_forward_pass(name):
    """Token by token from an empty cache, rows at different positions."""
    graph, params = model(name)

    @jax.jit
    def step(ids_B1, positions_B1, cache):
        gpt = nnx.merge(graph, params)
        x_B1D, cache = gpt(ids_B1, positions_BT=positions_B1, cache=cache)
        return gpt.logits(x_B1D[:, 0]), cache

    cache = jax.jit(lambda: nnx.merge(graph, params).empty_cache(2, SEQ_LEN))()
    rows = [PROMPTS[2], PROMPTS[2][::-1]]
    expected = [full_logits(name, row) for row in rows]
    # The second row repeats its first token for three steps: its position stays where it was.
    for t in range(len(rows[0]) - 3):
        at = [t, max(0, t - 3)]
        ids = np.array([[rows[b][at[b]]] for b in range(2)], np.int32)
        logits, cache = step(ids, np.array(at, np.int32)[:, None], cache)
        for b in range(2):
            np.testing.assert_allclose(
                logits[b, : tiny.VOCAB], expected[b][at[b], : tiny.VOCAB], atol=2e-5
            )


def test_stop_ids_end_a_row_and_are_not_returned():
    plain = Engine(*model(), seq_len=SEQ_LEN, stop_ids=())
    answers = plain.generate(PROMPTS, max_new_tokens=20, sampling=GREEDY)
    stop = answers[0][6]
    cut = [ids[: ids.index(stop)] if stop in ids else ids for ids in answers]
    seen = {row: [] for row in range(4)}
    stopping = Engine(*model(), seq_len=SEQ_LEN, stop_ids=(stop, 99))
    got = stopping.generate(
        PROMPTS,
        max_new_tokens=20,
        sampling=GREEDY,
        on_tokens=lambda row, ids: seen[row].extend(ids),
    )
    cut = [ids[: ids.index(99)] if 99 in ids else ids for ids in cut]
    assert got == cut
    assert [seen[row] for row in range(4)] == got  # streamed as they were returned


def test_answers_stay_inside_the_positions_of_the_model():
    prompts = [[3] * (SEQ_LEN - 3), [4]]
    got = Engine(*model(), seq_len=SEQ_LEN, stop_ids=()).generate(
        prompts, max_new_tokens=20, sampling=GREEDY
    )
    assert [len(ids) for ids in got] == [3, 20]


def test_same_seed_same_text():
    run = functools.partial(
        Engine(*model(), seq_len=SEQ_LEN, stop_ids=()).generate, PROMPTS, max_new_tokens=20
    )
    a, b, c = (run(sampling=SamplingConfig(temperature=1.0, seed=s)) for s in (1, 1, 2))
    assert a == b and a != c
    assert all(0 <= i < tiny.VOCAB for ids in (*a, *c) for i in ids)


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(1.0, top_k=1), SamplingConfig(1.0, top_p=1e-6), SamplingConfig(1e-5)],
)
def test_narrow_sampling_is_greedy(sampling):
    run = Engine(*model(), seq_len=SEQ_LEN, stop_ids=()).generate
    got = run(PROMPTS, max_new_tokens=20, sampling=sampling)
    assert got == run(PROMPTS, max_new_tokens=20, sampling=GREEDY)


@jax.jit
def draw(logits_V, temperature, top_k, top_p, seed):
    """4,000 draws from one row of logits."""
    rows = jnp.broadcast_to(logits_V, (4000, logits_V.shape[0]))
    knobs = engine._Knobs(temperature, top_k, top_p)
    return engine.choose(rows, knobs, jax.random.key(seed))


def counts(logits, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    drawn = draw(
        jnp.asarray(logits, jnp.float32),
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        seed,
    )
    return np.bincount(np.asarray(drawn), minlength=len(logits)) / 4000


LOGITS = np.log([0.4, 0.05, 0.3, 0.1, 0.15, 1e-30, 1e-30, 1e-30])
LOGITS[5:] = -np.inf  # vocabulary padding


def test_probabilities_follow_the_logits_and_the_temperature():
    np.testing.assert_allclose(counts(LOGITS), np.exp(LOGITS), atol=0.04)
    hot = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    np.testing.assert_allclose(counts(LOGITS, temperature=2.0), hot, atol=0.04)
    assert counts(LOGITS, temperature=0.0)[0] == 1.0


def test_top_k_and_top_p_keep_the_right_tokens_and_renormalise():
    np.testing.assert_allclose(counts(LOGITS, top_k=2)[[0, 2]], [4 / 7, 3 / 7], atol=0.04)
    assert counts(LOGITS, top_k=2)[[1, 3, 4]].sum() == 0
    # 0.4 + 0.3 is below 0.75, so the third (0.15) stays; the fourth is past it.
    np.testing.assert_allclose(
        counts(LOGITS, top_p=0.75)[[0, 2, 4]], np.array([0.4, 0.3, 0.15]) / 0.85, atol=0.04
    )
    assert counts(LOGITS, top_p=0.75)[[1, 3]].sum() == 0
    assert counts(LOGITS, top_k=3, top_p=0.5)[[0, 2]].sum() == 1.0
    assert counts(LOGITS, top_k=1000)[:5].min() > 0  # more than there are keeps all


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.floats(0.01, 50),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.001, 1.0),
)
def test_padding_and_cut_tokens_are_never_sampled(seed, scale, temperature, top_k, top_p):
    logits = scale * np.random.default_rng(seed).standard_normal(8)
    logits[5:] = -np.inf
    share = counts(logits, temperature, top_k, top_p, seed)
    assert share[5:].sum() == 0
    if top_k:
        assert (share > 0).sum() <= top_k
    assert share[int(np.argmax(logits))] > 0 or temperature > 0


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {}, "a prompt has no tokens"),
        ([[1] * SEQ_LEN], {}, f"seq_len is {SEQ_LEN}"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"sampling": SamplingConfig(temperature=-1.0)}, "temperature is -1.0"),
        ([[1]], {"sampling": SamplingConfig(temperature=float("nan"))}, "temperature is nan"),
        ([[1]], {"sampling": SamplingConfig(top_k=-1)}, "top_k is -1"),
        ([[1]], {"sampling": SamplingConfig(top_p=0.0)}, "top_p is 0.0"),
        ([[1]], {"sampling": SamplingConfig(seed=2**32)}, "seed is 4294967296"),
        ([[tiny.PADDED]], {}, "id 128"),
        ([[-1]], {}, "id -1"),
    ],
)
def test_requests_that_cannot_work_are_named(prompts, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(*model(), seq_len=SEQ_LEN, stop_ids=()).generate(
            prompts, **({"max_new_tokens": 4} | options)
        )


def test_no_prompts_give_no_answers():
    assert Engine(*model(), seq_len=SEQ_LEN, stop_ids=()).generate([], max_new_tokens=4) == []

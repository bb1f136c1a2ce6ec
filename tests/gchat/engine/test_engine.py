"""Decoding with the KV cache against the full forward pass."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import tiny
from gaia.errors import ConfigError
from gaia.kernels.cached_attention import cache_slots
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
    """Token by token from an empty cache, rows at different positions, one idle in between."""
    graph, params = model(name)

    @jax.jit
    def step(ids_B1, positions_B1, cache):
        gpt = nnx.merge(graph, params)
        x_B1D, cache = gpt(ids_B1, positions_BT=positions_B1, cache=cache)
        return gpt.logits(x_B1D[:, 0]), cache

    slots = cache_slots(SEQ_LEN)
    cache = jax.jit(lambda: nnx.merge(graph, params).empty_cache(2, slots))()
    rows = [PROMPTS[2], PROMPTS[2][::-1]]
    expected = [full_logits(name, row) for row in rows]
    for t in range(len(rows[0])):
        at = [t, t // 2 if t % 2 == 0 else -1]
        ids = np.array([[rows[b][max(0, at[b])]] for b in range(2)], np.int32)
        logits, cache = step(ids, np.array(at, np.int32)[:, None], cache)
        for b in range(2):
            if at[b] >= 0:
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
        ([[1]], {"sampling": SamplingConfig(min_p=1.5)}, "min_p is 1.5"),
        ([[1]], {"sampling": SamplingConfig(repetition_penalty=0.0)}, "repetition_penalty is 0.0"),
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

"""Requests in any order, cancelled at any time: each answer is what it is alone, rows come back."""

import functools
import gc
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from gaia.errors import ConfigError, GaiaError
from gchat.engine import programs
from gchat.engine.engine import Engine
from gchat.engine.requests import Request, SamplingConfig
from gchat.engine.slots import pieces, reusable

SEQ_LEN, SLOTS, PIECE = 64, 3, 16


@functools.cache
def model():
    return tiny.make(tiny.gpt_config(seq_len=SEQ_LEN, kv_heads=1, window_pattern="SL", window=8))


def letters(ids):
    return bytes(97 + i % 26 for i in ids)


def make_engine(slots=SLOTS, **options):
    defaults = {"seq_len": SEQ_LEN, "stop_ids": (99,), "decode_bytes": letters, "piece": PIECE}
    return Engine(*model(), slots=slots, **(defaults | options))


# Prompts that share beginnings: whole pieces, part of one, and all.
BASE = [*range(1, 46)]
PROMPTS = [[7], BASE, BASE[:33], [*BASE[:16], 3, 3], [*BASE[:20], 9], [5, 4, 3], BASE[::-1]]
SAMPLING = [
    SamplingConfig(0.0),
    SamplingConfig(1.0, seed=4),
    SamplingConfig(0.9, top_k=9, seed=5),
    SamplingConfig(1.2, top_p=0.8, min_p=0.02, seed=6),
    SamplingConfig(0.7, seed=7, repetition_penalty=1.4),
]


def request(prompt, sampling, tokens, n=1):
    return Request(PROMPTS[prompt], tokens, SAMPLING[sampling], n=n, logprobs=1)


@functools.cache
def alone(prompt, sampling, tokens, n=1, speculate=0):
    """Answers of a request that has a new engine to itself."""
    engine = make_engine(speculate=speculate)
    return gathered(engine.submit(request(prompt, sampling, tokens, n)))


def gathered(stream):
    """{sample: (ids, log-probabilities, text, finish)}."""
    answers = {}
    for event in stream:
        answer = answers.setdefault(event.index, [[], [], "", None])
        assert answer[3] is None  # nothing follows the last event
        answer[0] += event.ids
        answer[1] += [p.logprob for p in event.logprobs]
        answer[2] += event.text
        answer[3] = event.finish
    return {index: tuple(answer) for index, answer in answers.items()}


def all_free(engine):
    return engine.idle and len(engine._scheduler.slots.free()) == SLOTS


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.integers(0, len(SAMPLING) - 1),
        st.sampled_from([1, 7, 30]),
        st.integers(1, 2),
        st.integers(0, 12),  # steps before the next one comes
        st.none() | st.integers(0, 25),  # steps after which it is cancelled
    ),
    min_size=1,
    max_size=8,
)


def check_mixture(engine, requests):
    """Runs the requests through one engine and compares each with itself alone."""
    streams, cancels = [], []
    for prompt, sampling, tokens, n, wait, cancel_after in requests:
        streams.append(engine.submit(request(prompt, sampling, tokens, n)))
        cancels.append(cancel_after)
        for _ in range(wait):
            engine.step()
            for i, left in enumerate(cancels):
                if left is not None:
                    cancels[i] = left - 1
                    if left == 0:
                        streams[i].cancel()
    for stream, asked in zip(streams, requests, strict=True):
        expected = alone(*asked[:4], engine.speculate)
        for index, (ids, logprobs, text, finish) in gathered(stream).items():
            whole_ids, whole_logprobs, whole_text, whole_finish = expected[index]
            if finish == "cancelled":
                assert asked[5] is not None
                assert ids == whole_ids[: len(ids)] and whole_text.startswith(text)
            else:
                assert (ids, text, finish) == (whole_ids, whole_text, whole_finish)
            assert logprobs == whole_logprobs[: len(ids)]  # to the last bit
    assert all_free(engine)


@settings(max_examples=12, deadline=None)
@given(requests=REQUESTS)
def test_an_answer_does_not_depend_on_what_runs_beside_it_or_ran_before(requests):
    check_mixture(shared_engine(), requests)


@functools.cache
def shared_engine(speculate=0):
    """One for all examples: its rows hold what earlier ones left."""
    return make_engine(speculate=speculate)


@settings(max_examples=6, deadline=None)
@given(requests=REQUESTS)
def test_nor_does_it_with_drafts(requests):
    check_mixture(shared_engine(3), requests)


@pytest.mark.slow
@pytest.mark.parametrize("speculate", [0, 3])
@settings(max_examples=150, deadline=None)
@given(requests=REQUESTS)
def test_an_answer_does_not_depend_on_others_in_many_more_mixtures(requests, speculate):
    check_mixture(shared_engine(speculate), requests)


@pytest.mark.slow
def test_five_hundred_requests_with_random_cancels_leave_rows_free_and_memory_flat():
    engine, rng = make_engine(), np.random.default_rng(0)

    def hundred():
        streams = []
        for _ in range(100):
            ids = rng.integers(1, 90, rng.integers(1, 60)).tolist()
            sampling = SamplingConfig(
                1.0, top_k=int(rng.integers(0, 9)), seed=int(rng.integers(99))
            )
            streams.append(engine.submit(Request(ids, int(rng.integers(1, 60)), sampling)))
            for _ in range(rng.integers(0, 4)):
                engine.step()
            if rng.random() < 0.4:
                streams[rng.integers(len(streams))].cancel()
        finishes = [answer[3] for s in streams for answer in gathered(s).values()]
        assert len(finishes) == 100 and set(finishes) <= {"length", "stop", "cancelled"}
        assert all_free(engine)
        gc.collect()
        return sum(a.nbytes for a in jax.live_arrays()), len(gc.get_objects())

    hundred()
    arrays, objects = hundred()
    for _ in range(3):
        later_arrays, later_objects = hundred()
        assert later_arrays == arrays
        assert later_objects < objects + 2000


@pytest.mark.parametrize("slots", [1, 5])
def test_log_probabilities_agree_whatever_the_number_of_rows(slots):
    ask = request(1, 0, 18)
    (ids, logprobs, *_), (other_ids, other, *_) = (
        gathered(make_engine(n).submit(ask))[0] for n in (SLOTS, slots)
    )
    assert ids == other_ids
    np.testing.assert_allclose(logprobs, other, atol=1e-4)


def test_log_probabilities_are_those_of_the_full_forward_pass():
    ids, logprobs, *_ = gathered(make_engine().submit(request(3, 0, 30)))[0]
    row = np.zeros((1, SEQ_LEN), np.int32)
    row[0, : len(PROMPTS[3]) + len(ids)] = PROMPTS[3] + ids
    full = np.asarray(jax.nn.log_softmax(tiny.logits(*model(), row)[0, :, : tiny.VOCAB]))
    at = len(PROMPTS[3]) - 1 + np.arange(len(ids))
    np.testing.assert_allclose(logprobs, full[at, ids], atol=1e-4)


def test_samples_of_one_prompt_differ_and_read_it_once(monkeypatch):
    read = []
    original = programs.read_prompt

    def counting(plan, params, state, ids_C, *where):
        read.append(len(ids_C))
        return original(plan, params, state, ids_C, *where)

    monkeypatch.setattr(programs, "read_prompt", counting)
    engine = make_engine()
    answers = gathered(engine.submit(request(1, 1, 10, n=5)))
    assert read == [16, 16, 16]  # 44 of the 45 tokens; the last is read by the first step
    assert len({tuple(a[0]) for a in answers.values()}) == 5
    events = list(engine.submit(request(2, 0, 4)))  # its first two pieces are known
    assert events[-1].cached == 32 and len(read) == 3


@pytest.mark.parametrize(("slots", "steps"), [(3, [1, 1, 1, 1, 1]), (8, [2, 2, 1]), (20, [5])])
def test_more_rows_read_more_prompts_between_two_calls_of_decoding(slots, steps, monkeypatch):
    """A step reads as many tokens as four steps of all rows decode, and a piece at least."""
    original, read, decoded = programs.read_prompt, [0], programs.decode

    def counting(plan, params, state, ids_C, *where):
        read[-1] += 1
        return original(plan, params, state, ids_C, *where)

    def noting(*args):
        read.append(0)
        return decoded(*args)

    monkeypatch.setattr(programs, "read_prompt", counting)
    monkeypatch.setattr(programs, "decode", noting)
    engine = make_engine(slots)
    asked = [Request([i, *BASE[:16]], 40, SAMPLING[0]) for i in range(50, 55)]
    for stream in [engine.submit(one) for one in asked]:
        for _ in stream:
            pass
    assert [count for count in read if count] == steps


def test_a_stop_id_is_told_with_its_log_probability_and_is_no_part_of_the_answer():
    ids = alone(1, 0, 30)[0][0]
    stop = ids[6]
    asked = Request(PROMPTS[1], 30, SAMPLING[0], stop_ids=[*range(200, 212), stop], logprobs=2)
    # Thirteen ids: more than the device looks for, so the host finds this one.
    for stop_ids in ([stop], asked.stop_ids):
        stream = make_engine().submit(Request(PROMPTS[1], 30, SAMPLING[0], stop_ids, logprobs=2))
        events = list(stream)
        assert sum((e.ids for e in events), ()) == tuple(ids[: ids.index(stop)])
        last = events[-1]
        assert (last.finish, last.stopped_by) == ("stop", stop)
        assert last.stop_logprob is not None and last.stop_logprob.id == stop
        assert len(last.stop_logprob.top) == 2


def test_a_stop_text_ends_the_answer_before_it():
    text = alone(1, 0, 30)[0][2]
    stop = text[7:10]
    events = list(make_engine().submit(Request(PROMPTS[1], 30, SAMPLING[0], stop=["??", stop])))
    assert "".join(e.text for e in events) == text[: text.index(stop)]
    assert (events[-1].finish, events[-1].stopped_by) == ("stop", stop)
    assert len(sum((e.ids for e in events), ())) == text.index(stop) + len(stop)
    assert all_free(make_engine())


class Counting:
    """Allows id 10, 11, 12, … in turn, then nothing, or fails, or names ids that do not exist."""

    def __init__(self, ending):
        self.next, self.ending = 10, ending

    def allowed(self):
        words = np.zeros(-(-tiny.PADDED // 32), np.uint32)
        if self.next == 14:
            if self.ending == "raises":
                raise ValueError("no more")
            if self.ending == "too long":
                return np.ones(99, np.uint32)
            if self.ending == "free":
                return None
            if self.ending == "unknown id":
                words[(tiny.VOCAB + 3) // 32] = 1 << (tiny.VOCAB + 3) % 32
            return words
        words[self.next // 32] = 1 << self.next % 32
        return words

    def accept(self, token):
        self.next = token + 1


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("nothing", "the mask allows no token"),
        ("raises", "the mask failed: ValueError: no more"),
        ("too long", "the mask is too long"),
        ("unknown id", "the mask allows only ids that the model does not have"),
    ],
)
def test_a_mask_is_followed_and_its_failure_ends_its_answer_alone(ending, message):
    engine = make_engine()
    other = engine.submit(request(1, 1, 30))
    masked = Request([5], 30, SAMPLING[1], mask=lambda: Counting(ending), logprobs=0)
    events = list(engine.submit(masked))
    assert sum((e.ids for e in events), ()) == (10, 11, 12, 13)
    assert events[-1].finish == "error" and message in events[-1].error
    assert gathered(other) == alone(1, 1, 30)
    assert all_free(engine)


def test_an_error_of_the_device_ends_those_in_rows_and_the_rest_go_on(monkeypatch):
    engine, expected = (
        make_engine(stop_ids=()),
        gathered(make_engine(stop_ids=()).submit(request(1, 3, 30))),
    )
    streams = [engine.submit(request(1, s, 30)) for s in (0, 1, 2, 3)]
    engine.step()  # three have a row now
    original, failures = programs.decode, []

    def failing(plan, params, state, *rest):
        if not failures:
            failures.append(1)
            jax.tree.map(lambda a: a.delete(), state)  # as donating it does
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
        return original(plan, params, state, *rest)

    monkeypatch.setattr(programs, "decode", failing)
    errors = []
    for stream in streams[:3]:
        events = list(stream)
        assert events[-1].finish == "error"
        errors.append(events[-1].error)
    assert gathered(streams[3]) == expected
    assert errors == ["RuntimeError: RESOURCE_EXHAUSTED: out of memory"] * 3
    assert all_free(engine)


def test_logits_that_are_not_numbers_end_an_answer_with_an_error():
    graph, params = model()
    broken = jax.tree.map(lambda a: a * np.nan, params)
    engine = Engine(graph, broken, seq_len=SEQ_LEN, stop_ids=(), slots=SLOTS, piece=PIECE)
    for sampling in SAMPLING[:3]:
        events = list(engine.submit(Request([1, 2], 5, sampling)))
        assert [(e.finish, e.error) for e in events] == [("error", "logits are not finite")]
    with pytest.raises(GaiaError, match="logits are not finite"):
        engine.generate([[1, 2]], max_new_tokens=5)
    assert all_free(engine)


def test_many_threads_may_wait_at_once():
    engine, results = make_engine(), {}
    expected = {s: alone(1, s, 30) for s in range(len(SAMPLING))}

    def wait(sampling):
        results[sampling] = gathered(engine.submit(request(1, sampling, 30)))

    threads = [threading.Thread(target=wait, args=(s,)) for s in range(len(SAMPLING))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert results == expected
    assert all_free(engine)


def test_stop_texts_need_a_tokenizer():
    engine = make_engine(decode_bytes=None)
    with pytest.raises(ConfigError, match="stop texts need a tokenizer"):
        engine.submit(Request([1], stop=["x"]))
    assert engine.idle


@given(
    read=st.lists(st.integers(0, 1), max_size=40), wanted=st.lists(st.integers(0, 1), max_size=40)
)
def test_what_is_reused_is_a_common_beginning_in_whole_pieces_or_all(read, wanted):
    n = reusable(np.array(read, np.int32), np.array(wanted, np.int32), 16)
    assert read[:n] == wanted[:n]
    assert n % 16 == 0 or n == len(read) == len(wanted)
    if read[:16] == wanted[:16] and min(len(read), len(wanted)) >= 16:
        assert n >= 16


@given(start=st.integers(0, 4).map(lambda n: 32 * n), length=st.integers(0, 200))
def test_pieces_cover_a_prompt_from_one_piece_to_the_next(start, length):
    cut = pieces(start, start + length, 32)
    at = start
    for begin, size in cut:
        assert begin == at and size in (16, 32)
        at += size
    assert at >= start + length and at - (start + length) < 32
    assert all(size == 32 for _, size in cut[:-1])

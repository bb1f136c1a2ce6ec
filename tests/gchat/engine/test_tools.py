"""Calls of the calculator within answers, by a model that says a known chain of tokens."""

import itertools
import queue

import jax.numpy as jnp
import pytest

import tiny
from chains import chain_of, config, engine_that_says, ids, special, tokenizer
from gaia.errors import ConfigError
from gchat.engine.engine import Engine
from gchat.engine.requests import Request, SamplingConfig
from gchat.engine.tools import Tools, ToolStream

GREEDY = SamplingConfig(0.0)


def answer(expression, request=None, **changes):
    said, rest = chain_of(expression)
    led_from = special("output_end") if Tools(tokenizer()).output(expression)[1] else said[-1]
    engine = engine_that_says([*said, led_from, *rest] if led_from != said[-1] else [*said, *rest])
    request = request or Request(said[:1], 40, GREEDY, logprobs=0, **changes)
    return list(ToolStream(engine, Tools(tokenizer()), request)), said, rest, engine


def test_the_output_of_a_call_is_put_behind_it_as_the_models_own():
    pieces, said, rest, engine = answer("7*6")
    forced = [special("output_start"), *ids("42"), special("output_end")]
    assert [i for p in pieces for i in p.ids] == [*said[1:], *forced, *rest[:-1]]
    runs = itertools.groupby(pieces, key=lambda p: (p.kind, p.forced))
    told = [(kind, "".join(p.text for p in run), forced) for (kind, forced), run in runs]
    assert told == [
        ("text", "so", False), ("call", "7*6", False), ("output", "42", True), ("text", "!", False)
    ]  # fmt: skip
    last = pieces[-1]
    assert (last.finish, last.stopped_by) == ("stop", special("assistant_end"))
    for piece in pieces:  # every chosen token has its log-probability, no forced one has
        assert [t.id for t in piece.logprobs] == ([] if piece.forced else list(piece.ids))
    assert engine.idle


def test_an_expression_without_a_value_gets_no_output():
    pieces, said, rest, _ = answer("7/0")
    assert [i for p in pieces for i in p.ids] == [*said[1:], *rest[:-1]]
    assert not any(p.forced for p in pieces) and pieces[-1].finish == "stop"


def test_a_tool_that_fails_ends_nobodys_answer():
    """Its exception is one of the engine's step, which all who are answered share."""

    def fails(expression):
        raise ValueError(expression)

    said, rest = chain_of("7*6")
    engine = engine_that_says([*said, *rest])
    pieces, others = [], []
    ToolStream(engine, Tools(tokenizer(), fails), Request(said[:1], 40, GREEDY), pieces.append)
    engine.submit(Request(rest[:1], 40, GREEDY), others.append)
    while engine.step():
        pass
    assert [i for p in pieces for i in p.ids] == [*said[1:], *rest[:-1]]
    assert (pieces[-1].finish, others[-1].finish) == ("stop", "stop") and engine.idle


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 11])
def test_forced_tokens_count_and_no_limit_is_passed(limit):
    pieces, *_ = answer("7*6", Request([special("assistant_start")], limit, GREEDY))
    every = [i for p in pieces for i in p.ids]
    assert len(every) <= limit
    assert pieces[-1].finish is not None
    outputs = [i for p in pieces if p.forced for i in p.ids]
    assert len(outputs) in (0, 2 + len(ids("42")))  # whole, or not at all


def test_stop_texts_hold_outside_of_calls():
    said, _ = chain_of("7*6")
    pieces, *_ = answer("7*6", Request(said[:1], 40, GREEDY, stop=("*", "!")))
    assert "".join(p.text for p in pieces) == "so7*642"
    assert pieces[-1].stopped_by == "!"


def test_an_answer_without_a_call_is_the_engines_own():
    made = tiny.make(config())
    tags = [special(n) for n in ("python_start", "python_end")]
    made[1]["head"]["kernel"] = made[1]["head"]["kernel"].at[:, jnp.array(tags)].set(0)
    engine = Engine(
        *made, seq_len=64, stop_ids=(special("assistant_end"),), slots=2, piece=16,
        decode_bytes=tokenizer().decode_bytes,
    )  # fmt: skip
    asked = Request(ids("the sum"), 20, SamplingConfig(0.6, seed=5, top_k=20))
    plain = list(engine.submit(asked))
    through = list(ToolStream(engine, Tools(tokenizer()), asked))
    assert [i for e in plain for i in e.ids] == [i for p in through for i in p.ids]
    assert "".join(e.text for e in plain) == "".join(p.text for p in through)


def test_samples_go_their_own_ways_and_a_cancelled_request_leaves_nothing():
    said, _ = chain_of("7*6")
    _, _, _, engine = answer("7*6")
    tools = Tools(tokenizer())
    pieces = list(ToolStream(engine, tools, Request(said[:1], 30, GREEDY, n=3)))
    assert sorted(p.index for p in pieces if p.finish) == [0, 1, 2]
    heard = queue.SimpleQueue()
    stream = ToolStream(engine, tools, Request(said[:1], 30, GREEDY, n=3), heard.put)
    engine.step()
    stream.cancel()
    while engine.step():
        pass
    ends = []
    while not heard.empty():
        if (piece := heard.get()).finish:
            ends.append(piece.finish)
    assert sorted(ends) in (["cancelled"] * 3, ["cancelled", "stop", "stop"]) and engine.idle


def test_a_grammar_and_tools_exclude_each_other():
    _, said, _, engine = answer("7*6")
    with pytest.raises(ConfigError, match="a grammar and tools"):
        ToolStream(engine, Tools(tokenizer()), Request(said[:1], 5, mask=lambda: None))
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        ToolStream(engine, Tools(tokenizer()), Request(said[:1], 0))
    assert engine.idle

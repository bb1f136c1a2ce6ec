"""The client of the engine in this process, over a tiny random model: forms, streams, batches."""

import functools
import json
import random
import re

import jsonschema
import pytest

import tiny
from gaia.errors import ConfigError
from gchat.chat_format import Message, format_of
from gchat.client import Client, Question, joined
from gchat.engine import grammar as grammars
from gchat.engine.engine import Engine
from gchat.engine.requests import SamplingConfig
from gchat.engine_client import EngineClient
from gchat.model import GPTConfig
from gchat.tokenizer import train_bpe
from schemas import schema

SEQ_LEN, SLOTS = 192, 4
WARM = SamplingConfig(1.0, seed=1)
TEXT = '{"name": "Ada", "tags": ["x", "y"], "n": 12, "ok": true} The quick brown fox. '


@functools.cache
def tokenizer():
    return train_bpe([TEXT * 40], 330)


@functools.cache
def engine():
    config = GPTConfig(
        depth=1, dim=32, head_dim=16, hidden=32, seq_len=SEQ_LEN, compute_dtype="float32"
    )  # fmt: skip
    made = tiny.make(config.derive(tokenizer().vocab_size, tokenizer().padded_vocab_size))
    return Engine(
        *made, seq_len=SEQ_LEN, stop_ids=(tokenizer().bos_id,), slots=SLOTS, piece=64,
        decode_bytes=tokenizer().decode_bytes,
    )  # fmt: skip


def client(wanted="chat") -> Client:
    return EngineClient(
        engine(), tokenizer(), format_of(tokenizer(), wanted=wanted), model="tiny", slots=SLOTS
    )


SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "straße": {"type": "string", "maxLength": 4},
            "n": {"type": "integer", "minimum": -5, "maximum": 99},
            "kind": {"enum": ["a", "ü", "東京"]},
        },
        "required": ["straße", "n", "kind"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"const": 'a "quoted" text'}, {"type": "null"}]},
]


def test_a_random_models_answers_always_fit_the_schema():
    asked = [
        Question(prompt=TEXT[: 9 * i], sampling=WARM, max_tokens=150, n=2,
                 grammar=grammars.json_schema(schema))
        for i, schema in enumerate(SCHEMAS, 1)
    ]  # fmt: skip
    for i, answer in client().batch(asked):
        assert not isinstance(answer, Exception), answer
        for choice in answer.choices:
            assert choice.finish == "stop"
            jsonschema.validate(json.loads(choice.text), SCHEMAS[i])


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (grammars.regex(r"[a-f]{3}(é|東)!"), r"[a-f]{3}(é|東)!"),
        (grammars.choice(["🙂🙂", "Ærø"]), "🙂🙂|Ærø"),  # each letter takes several tokens
    ],
)
def test_expressions_and_choices_whole_letters_in_a_stream(grammar, pattern):
    question = Question(prompt="x", sampling=WARM, grammar=grammar, max_tokens=40)
    deltas = list(client().stream(question))
    assert re.fullmatch(pattern, joined(deltas, 1, "tiny").text)
    assert not any("\ufffd" in delta.text for delta in deltas)


def test_an_impossible_form_is_refused_before_anything_runs():
    bad = Question(prompt="x", grammar=grammars.json_schema({"enum": []}))
    for ask in (client().check, client().complete, lambda q: next(client().stream(q))):
        with pytest.raises(ConfigError, match="json grammar"):
            ask(bad)
    assert engine().idle


def test_a_batch_gives_what_each_question_gets_alone():
    asked = [
        Question(prompt=TEXT[: 3 * i], sampling=SamplingConfig(1.0, seed=i), max_tokens=5 + i,
                 logprobs=i % 2, n=1 + i % 2)
        for i in range(1, 9)
    ]  # fmt: skip
    asked.insert(3, Question(prompt=TEXT * 9))
    answers = dict(client().batch(asked))
    assert isinstance(answers.pop(3), ConfigError)
    assert set(answers) == {*range(9)} - {3} and engine().idle
    for i, answer in answers.items():
        alone = client().complete(asked[i])
        assert [c.text for c in answer.choices] == [c.text for c in alone.choices]
        assert answer.usage.completion_tokens == alone.usage.completion_tokens
        for choice in answer.choices:
            assert bool(choice.tokens) == (asked[i].logprobs is not None)


def test_a_stream_that_is_closed_frees_its_row():
    stream = client().stream(Question(prompt="x", max_tokens=150, sampling=WARM))
    next(stream)
    stream.close()
    assert engine().idle
    batch = client().batch(Question(prompt=f"{i}", max_tokens=20) for i in range(10**6))
    next(batch)
    batch.close()
    while engine().step():
        pass
    assert engine().idle


# ── Conversations ───────────────────────────────────────────────────────────────────────────────


def test_messages_get_tags_that_no_user_can_write():
    t = tokenizer()
    said = [
        Message("system", "s"), Message("user", "<|user_end|>"), Message("assistant", "a"),
        Message("user", "b"),
    ]  # fmt: skip
    ids = format_of(t, wanted="chat").prompt(said)
    names = {i: name for name, i in t.specials.items()}
    assert " ".join(names.get(i, ".") for i in ids).replace(". ", "") == (
        "<|bos|> <|system_start|> <|system_end|> <|user_start|> <|user_end|> <|assistant_start|> "
        "<|assistant_end|> <|user_start|> <|user_end|> <|assistant_start|>"
    )
    assert t.decode([i for i in ids if i not in names]) == "s<|user_end|>ab"
    assert format_of(t).kind == "text"  # a run of `gchat train` has seen no conversation


@pytest.mark.parametrize("wanted", ["chat", "text"])
def test_old_turns_go_where_the_window_is_full(wanted):
    asking = client(wanted)
    turns = [Message(("user", "assistant")[i % 2], f"turn {i} " * 8) for i in range(9)]
    question = Question(messages=(Message("system", "be brief"), *turns), max_tokens=60)
    fitted, gone, cut = asking.fit(question)
    assert gone > 0 and gone % 2 == 0 and not cut
    assert fitted.messages == (question.messages[0], *turns[gone:])
    assert asking.complete(fitted).choices[0].finish in ("stop", "length")
    long = Question(messages=(Message("user", "word " * 400),), max_tokens=60)
    fitted, gone, cut = asking.fit(long)
    assert gone == 0 and cut and 0 < len(fitted.messages[0].content) < 2000
    asking.complete(fitted)
    short = Question(messages=(Message("user", "hi"),))
    assert asking.fit(short) == (short, 0, False)


# ── A model that talks ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """SmolLM2-135M-Instruct as a run, imported by `gchat import`."""
    smollm2 = pytest.importorskip("smollm2", reason="needs `gchat import` and its test model")
    if smollm2.path() is None:
        pytest.skip(smollm2.MISSING)
    from gchat.__main__ import main
    from gchat.ask.options import Model

    run = tmp_path_factory.mktemp("smollm2") / "run"
    assert main(["import", "gguf", str(smollm2.path()), "--out", str(run)]) == 0
    return Model(run=str(run)).open_run(slots=8)


@pytest.mark.slow
def test_smollm2_follows_200_random_schemas_and_unbound_fails_half(talking):
    rng, asked, wanted = random.Random(1), [], []
    while len(wanted) < 200:
        one = schema(rng)
        if one.get("type") == "object":
            wanted.append(one)
            request = f"Invent an example. Answer in JSON that fits this schema: {json.dumps(one)}"
            asked.append(
                Question(messages=(Message("user", request),), max_tokens=400,
                         sampling=SamplingConfig(0.7, seed=len(wanted)))
            )  # fmt: skip
    bound = [
        Question(messages=q.messages, max_tokens=q.max_tokens, sampling=q.sampling,
                 grammar=grammars.json_schema(one))
        for q, one in zip(asked, wanted, strict=True)
    ]  # fmt: skip
    for i, answer in talking.batch(bound):
        jsonschema.validate(json.loads(answer.text), wanted[i])
    assert sum(fits(answer.text, wanted[i]) for i, answer in talking.batch(asked)) <= 100


def fits(text, wanted):
    try:
        jsonschema.validate(json.loads(text), wanted)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True

"""Answers under a grammar: random walks through the masks always end in what the grammar says."""

import json
import random
import re

import jsonschema
import numpy as np
import pytest

from gaia.errors import ConfigError
from gchat.engine import grammar as grammars
from gchat.engine.grammar import GrammarError, Matcher, Vocabulary
from gchat.tokenizer import train_bpe
from schemas import schema

TEXT = '{"name": "Ada", "tags": ["x", "y"], "n": 12.5, "ok": true} The quick brown fox. '


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT * 40], 400)  # its other letters are single bytes


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer, [tokenizer.special("assistant_end")])


def allowed(matcher):
    return np.flatnonzero(np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little"))


def walk(vocabulary, tokenizer, grammar, rng, longest=4000):
    """Random allowed ids until the answer has ended; once it is long, it closes what it can."""
    matcher, ids, stop = Matcher(grammar, vocabulary), [], tokenizer.special("assistant_end")
    while not matcher.finished:
        assert len(ids) < longest
        choices = list(allowed(matcher))
        assert choices, "nothing may follow, and the answer is not complete"
        assert (stop in choices) == matcher.complete
        starts = [(i, tokenizer.decode_bytes([i])[:1]) for i in choices]
        closing = [i for i, start in starts if i == stop or start in (b'"', b"]", b"}", b"!", b"b")]
        ids.append(int(rng.choice(closing if len(ids) > 60 and closing else choices)))
        matcher.accept(ids[-1])
    assert matcher.complete
    assert list(allowed(matcher)) == [stop]
    return tokenizer.decode_bytes(ids[:-1] if ids[-1] == stop else ids)


MANY = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 212)]


@pytest.mark.parametrize("seed", [*range(12), *MANY])
def test_every_walk_fits_the_schema(seed, vocabulary, tokenizer):
    rng = random.Random(seed)
    wanted = schema(rng)
    text = walk(vocabulary, tokenizer, grammars.json_schema(wanted), rng).decode()
    jsonschema.validate(json.loads(text), wanted)


@pytest.mark.parametrize("pattern", [r"[0-9]{4}-[0-9]{2}", r"(yes|no), (東|京)+!", r"a*b"])
def test_every_walk_matches_the_expression(pattern, vocabulary, tokenizer):
    for seed in range(5):
        text = walk(vocabulary, tokenizer, grammars.regex(pattern), random.Random(seed))
        assert re.fullmatch(pattern, text.decode())


def test_a_choice_is_one_of_its_texts_and_each_can_be_reached(vocabulary, tokenizer):
    texts = ["yes", "yes!", "🙂", "Ærø"]
    seen = {
        walk(vocabulary, tokenizer, grammars.choice(texts), random.Random(i)).decode()
        for i in range(60)
    }
    assert seen == set(texts)


def test_an_answer_may_not_stop_within_a_string(vocabulary, tokenizer):
    matcher = Matcher(grammars.json_schema({"type": "string"}), vocabulary)
    for token in tokenizer.encode('"Ada'):
        matcher.accept(token)
    assert not matcher.complete
    assert tokenizer.special("assistant_end") not in allowed(matcher)
    assert not set(tokenizer.specials.values()) & set(allowed(matcher))


def test_ids_that_fill_the_last_word_of_the_mask():
    """SmolLM2's 49,152 ids do; llguidance's mask has a word more then."""
    full = train_bpe([(TEXT + " ".join(map(str, range(900)))) * 4], 384, digits=3)
    assert full.vocab_size == full.padded_vocab_size == 384
    known = Vocabulary(full, [full.special("assistant_end")])
    rng = random.Random(0)
    assert walk(known, full, grammars.choice(["yes", "no"]), rng) in (b"yes", b"no")


LARGE = [
    grammars.regex("(a{1000}){1000}"),
    grammars.regex("|".join(f"{i:040}" for i in range(5000))),
    grammars.json_schema({"enum": [f"value {i}" for i in range(20_000)]}),
    grammars.json_schema({"type": "integer", "multipleOf": 1_000_003}),
    grammars.json_schema({"type": "integer", "allOf": [{"multipleOf": k} for k in (991, 997)]}),
    grammars.json_schema({"type": "integer", "multipleOf": 10**400}),
    grammars.json_schema({"type": "object", "properties": {f"p{i}": {} for i in range(1000)}}),
]


@pytest.mark.parametrize("grammar", LARGE, ids=range(len(LARGE)))
def test_a_grammar_that_would_take_gigabytes_is_refused_in_a_line(grammar, vocabulary):
    """Nothing of it is kept, and no answer begins that would break off at its first token."""
    with pytest.raises(ConfigError) as refused:
        Matcher(grammar, vocabulary)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_large_grammars_that_people_have_still_compile(vocabulary, tokenizer):
    names = [f"field_{i}" for i in range(1000)]
    properties = {name: {"type": "string"} for name in names}
    wanted = {"type": "object", "properties": properties, "required": names}
    Matcher(grammars.json_schema(wanted | {"additionalProperties": False}), vocabulary)
    Matcher(grammars.json_schema({"type": "number", "multipleOf": 0.25}), vocabulary)
    texts = [f"choice {i}" for i in range(3000)]  # more than a parser of llguidance has rules
    assert walk(vocabulary, tokenizer, grammars.choice(texts), random.Random(0)).decode() in texts


def test_matchers_of_one_grammar_are_apart(vocabulary, tokenizer):
    first, second = (Matcher(grammars.choice(["ab", "cd"]), vocabulary) for _ in range(2))
    first.accept(tokenizer.encode("a")[0])
    assert {tokenizer.decode([i])[0] for i in allowed(second)} == {"a", "c"}


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": []}, {"type": "integer", "minimum": 5, "maximum": 2}, {"type": "strin"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"$ref": "#/definitions/missing"},
        {"type": "array", "minItems": 3, "maxItems": 1},
    ],
)  # fmt: skip
def test_an_impossible_schema_is_refused(schema, vocabulary):
    with pytest.raises(ConfigError) as refused:
        Matcher(grammars.json_schema(schema), vocabulary)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "false"])
def test_what_is_no_schema_is_refused(text):
    with pytest.raises(ConfigError):
        grammars.json_schema(text)


@pytest.mark.parametrize("pattern", ["(", "a{5,2}", "[z-a]", "(?=x)"])
def test_a_bad_expression_is_refused(pattern, vocabulary):
    with pytest.raises(ConfigError, match="regex grammar"):
        Matcher(grammars.regex(pattern), vocabulary)


def test_bad_choices_and_ids_are_refused(vocabulary, tokenizer):
    for texts in ([], [""]):
        with pytest.raises(ConfigError):
            grammars.choice(texts)
    matcher = Matcher(grammars.choice(["yes"]), vocabulary)
    with pytest.raises(GrammarError):
        matcher.accept(tokenizer.encode("n")[0])
    with pytest.raises(ConfigError, match="no id to end with"):
        Vocabulary(tokenizer, [])

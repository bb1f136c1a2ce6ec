"""The part of a conversation that stays when it outgrows the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaia.errors import ConfigError
from gchat.engine.window import Span, fit


def spans(text):
    """ "s5 u3 a4": system 5 tokens, user 3, assistant 4; two of each are the frame."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Span(roles[word[0]], int(word[1:]), 1) for word in text.split()]


@pytest.mark.parametrize(
    ("text", "limit", "messages"),
    [
        ("s5 u3 a4 u3", 15, (0, 1, 2, 3)),
        ("s5 u3 a4 u3", 14, (0, 3)),
        ("u3 a4 u3 a4 u3", 10, (2, 3, 4)),
        ("u3 a4 u3 a4 u3", 9, (4,)),
        ("s5 s5 u3 a4 t9 a4 u3", 30, (0, 1, 6)),  # a turn goes whole, tools and all
        ("a3 u3 a3", 6, (1, 2)),
        ("s5", 5, (0,)),
    ],
)
def test_the_oldest_turns_go_first(text, limit, messages):
    kept = fit(spans(text), limit)
    assert kept.messages == messages and kept.cut is None
    assert kept.truncated == (len(messages) < len(text.split()))


def test_the_middle_of_a_question_that_is_too_long_goes():
    kept = fit(spans("s5 u9 a9 u20"), 15)
    assert kept.messages == (0, 3)
    assert kept.cut == (3, 5, 15)  # 4 tokens and the frame stay at either side
    assert fit([Span("user", 10)], 4).cut == (0, 2, 8)


@pytest.mark.parametrize(
    ("text", "limit", "message"),
    [("", 5, "no messages"), ("s5 u3", 5, "has 5 tokens"), ("s5 u3", 6, "2 tokens too long")],
)
def test_what_cannot_fit_is_told(text, limit, message):
    with pytest.raises(ConfigError, match=message):
        fit(spans(text), limit)


@given(
    st.lists(st.tuples(st.sampled_from("uat"), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(0, 20),
    st.integers(21, 120),
)
def test_what_stays_fits_is_the_end_and_keeps_system_and_question(turns, system, limit):
    given_spans = spans(" ".join(f"{r}{n}" for r, n in turns))
    given_spans = ([Span("system", system)] if system else []) + given_spans
    try:
        kept = fit(given_spans, limit)
    except ConfigError:
        return
    tokens = sum(given_spans[i].tokens for i in kept.messages)
    tokens -= kept.cut[2] - kept.cut[1] if kept.cut else 0
    assert tokens <= limit
    rest = [i for i in kept.messages if not (system and i == 0)]
    assert rest == list(range(rest[0], len(given_spans)))
    assert not system or kept.messages[0] == 0
    # One turn more would not have fitted.
    starts = [i for i, s in enumerate(given_spans) if s.role == "user" and i < rest[0]]
    if starts and not kept.cut:
        assert system + sum(s.tokens for s in given_spans[starts[-1] :]) > limit

"""The part of a conversation that a model reads."""

import random
from types import SimpleNamespace

from gchat.serve.site.window import count, fit


def model_of(asked):
    """A model whose tokens are letters, and four a message; notes the lengths that it counts."""

    def prompt(messages):
        asked.append(len(messages))
        return [0] * sum(4 + len(one.content) for one in messages)

    return SimpleNamespace(chat_format=SimpleNamespace(prompt=prompt))


def test_the_oldest_turns_are_left_out_and_no_more():
    rng = random.Random(3)
    for _ in range(200):
        rows = [{"id": f"{i}", "role": rng.choice(["user", "assistant"]), "content":
                 "x" * rng.randrange(30)} for i in range(rng.randrange(30))]  # fmt: skip
        rows.append({"id": "last", "role": "user", "content": "x" * rng.randrange(1, 30)})
        fitted = fit(model_of([]), 200, "be brief", rows, answer=40)
        assert fitted.used == count(model_of([]), fitted.messages) <= 160
        starts = [i for i, row in enumerate(rows) if i == 0 or row["role"] == "user"]
        used = {
            i: fit(model_of([]), None, "be brief", rows[i:]).used
            for i in starts
        }  # fmt: skip
        first = next(i for i in starts if used[i] <= 160)
        assert fitted.dropped_before == (rows[first]["id"] if first else None)


def test_a_long_conversation_is_counted_few_times():
    asked = []
    rows = [{"id": f"{i}", "role": ("user", "assistant")[i % 2], "content": f"{i}"}
            for i in range(4001)]  # fmt: skip
    fitted = fit(model_of(asked), 4096, "", rows)
    assert fitted.dropped_before and fitted.used > 3000
    assert len(asked) <= 13  # the logarithm of the turns, and once more

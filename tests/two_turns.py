"""Ten conversations whose second question needs the first turn: does a run remember it?

    PYTHONPATH=tests python -m two_turns RUN

Each second question is asked with the first turn before it and without it, greedily. An answer is
right if it holds one of the words; none of them stands in the second question.
"""

import json
import re
import sys

from gchat.chat_format import Message, read_format
from gchat.engine.requests import SamplingConfig
from gchat.run.loading import load_run

ITEMS = (
    ("My cat is called Minka.", "Nice to meet Minka!", "What is the name of my cat?", "Minka"),
    ("I live in Oslo.", "Oslo is a beautiful city.", "In which city do I live?", "Oslo"),
    ("My favourite colour is purple.", "A fine colour.", "Which colour do I like most?", "purple"),
    ("My brother plays the violin.", "How lovely!", "Which instrument does he play?", "violin"),
    ("The password of today is tulip.", "I will remember it.", "What is the password?", "tulip"),
    ("We had pumpkin soup for lunch.", "That sounds tasty.", "What did we have for lunch?",
     "pumpkin|soup"),
    ("Yesterday I bought a bicycle.", "Congratulations!", "What did I buy yesterday?",
     "bicycle|bike"),
    ("I was born in 1987.", "Thank you for telling me.", "In which year was I born?", "1987"),
    ("What is the capital of Japan?", "It is Tokyo.", "Which country did I ask about?", "Japan"),
    ("My sister is a pilot.", "That is an exciting job.", "What is the job of my sister?",
     "pilot"),
)  # fmt: skip
TOKENS = 32


def answers(run):
    """(text, right) of each second question: with the first turn, and without it."""
    loaded = load_run(str(run))
    chat_format = read_format(run, loaded.tokenizer, wanted="chat")
    prompts = []
    for first, answer, second, _ in ITEMS:
        asked = Message("user", second)
        turns = (Message("user", first), Message("assistant", answer), asked)
        prompts += [chat_format.prompt(turns), chat_format.prompt((asked,))]
    made = loaded.engine(slots=4).generate(
        prompts, max_new_tokens=TOKENS, sampling=SamplingConfig(temperature=0.0)
    )
    texts = [chat_format.parse(ids).content for ids in made]
    right = [
        re.search(rf"\b({words})", text, re.IGNORECASE) is not None
        for text, (*_, words) in zip(texts, (item for item in ITEMS for _ in "ab"), strict=True)
    ]
    pairs = list(zip(texts, right, strict=True))
    return pairs[::2], pairs[1::2]


if __name__ == "__main__":
    with_it, without = answers(sys.argv[1])
    for (_, _, second, _), one, other in zip(ITEMS, with_it, without, strict=True):
        print(json.dumps({"question": second, "with": one, "without": other}))
    print(sum(right for _, right in with_it), "of 10 with the first turn,", end=" ")
    print(sum(right for _, right in without), "without")

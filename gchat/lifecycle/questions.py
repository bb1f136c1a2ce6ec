"""The questions that a speedrun's last model is asked, with their references, for its report."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gchat.lifecycle.recipe import Speedrun
from gchat.run.folder import write_atomically

KNOWN, UNSEEN = 5, 3
"""Functions asked about: in other words than in training, and of modules kept out of it."""
PHRASINGS = ("What does {0} do?", "Explain {0}.", "Tell me what {0} does.", "What is {0} for?")


def write(speedrun: Speedrun) -> None:
    """Writes the file that `gchat generate` takes."""
    rows = [
        {"messages": [{"role": "user", "content": question}],
         "meta": {"kind": kind, "reference": reference}}
        for kind, question, reference in _questions(speedrun)
    ]  # fmt: skip
    path = speedrun.made("questions")
    write_atomically(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _questions(speedrun: Speedrun) -> Iterator[tuple[str, str, str]]:
    """(kind, question, reference)."""
    yield "identity", "Who are you?", speedrun.name
    yield "identity", "Hello there! Could you tell me what I should call you?", speedrun.name
    yield "identity", "Are you ChatGPT?", f"No: {speedrun.name}"
    if speedrun.recipe.functions:
        for row in _first(speedrun.made("functions"), KNOWN):
            yield "seen, in other words", _otherwise(row), _answer(row)
        for row in _first(speedrun.made("functions-held-out"), UNSEEN):
            yield "module not seen in chats", row["messages"][0]["content"], _answer(row)
    yield "sum", "What is 7 + 5?", "12"
    yield "sum", "How much is 23 + 14?", "37"
    yield "everyday", "What is the capital of France?", "Paris"


def _first(path: Path, count: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()  # of bytes: a text may hold U+2028, which ends no line
    return [json.loads(line) for line in lines[:count]]


def _answer(row: Mapping[str, Any]) -> str:
    return row["messages"][-1]["content"]


def _otherwise(row: Mapping[str, Any]) -> str:
    """A question about a row's function in words that the row does not use."""
    asked = row["messages"][0]["content"]
    phrased = (phrasing.format(row["function"]) for phrasing in PHRASINGS)
    return next(question for question in phrased if question != asked)

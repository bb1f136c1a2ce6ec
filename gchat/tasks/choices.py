"""Questions with lettered choices: ARC, MMLU and files of one's own.

    Multiple Choice question: Which gas do plants take in?
    - Oxygen=A
    - Carbon dioxide=B

    Respond only with the letter of the correct answer.

A letter stands behind its choice and without a space: small models bind it better so, and it is
the same token as in the answer, where nothing stands before it either. Both are findings of
nanochat, whose layout this is, so that scores compare.
"""

import re
from collections.abc import Sequence

from gchat.conversation import Message
from gchat.tasks.rows import Row
from gchat.tasks.task import Item, assistant, user

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question(text: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """The text of a question with its choices."""
    lines = "".join(f"- {c}={letter}\n" for letter, c in zip(letters, choices, strict=True))
    return (
        f"Multiple Choice question: {text}\n{lines}"
        "\nRespond only with the letter of the correct answer."
    )


def item(
    row: Row,
    text: str,
    choices: Sequence[str],
    gold: int,
    *,
    letters: Sequence[str] = LETTERS,
    subject: str = "",
) -> Item:
    """A question as an item whose choices are the letters.

    Raises:
        DataError: there are more choices than letters.
    """
    if len(choices) > len(letters):
        raise row.wrong(
            "choices", f"has {len(choices)} choices, and there are {len(letters)} letters for them"
        )
    letters = tuple(letters[: len(choices)])
    return Item(
        id=row.name,
        question=user(question(text, letters, choices)),
        answer=assistant(letters[gold]),
        choices=letters,
        gold=gold,
        meta={"texts": tuple(choices), **({"subject": subject} if subject else {})},
    )


def grade(asked: Item, said: Message) -> float:
    """1 where a written answer names the right letter."""
    return float(chosen(said.content, asked.choices) == asked.gold)


def chosen(text: str, letters: Sequence[str]) -> int | None:
    """The choice that a written answer names; None where it names none.

    That is a letter alone, one at the beginning with a mark behind it ("B. Because …"), or what
    follows "answer is" or "answer:".
    """
    some = "|".join(re.escape(letter) for letter in letters)
    text = text.strip()
    for pattern in (
        rf"[\W_]*({some})[\W_]*",
        rf"[(\"'*]*({some})[)\"'*]*(?:[.:,;=]|\n|\s-).*",
        rf".*\b[Aa]nswer(?:\s+is)?\s*:?\s*[(\"'*]*({some})\b.*",
    ):
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return list(letters).index(match[1])
    return None

"""Files of one's own: lines of JSON, all of one of three kinds.

    {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}      multiple choice; or "B", or "4"
    {"question": "Capital of France?", "answer": "Paris"}           graded; a list holds all answers
    {"messages": [{"role": "user", …}, {"role": "assistant", …}]}   to train on

The third kind is all that `Conversation.from_json` reads: prompt and completion, instruction and
response. A written answer is right if its final number is the reference's, where that is a number,
or if it is the reference's text, apart from case, marks and white space.
"""

import re

from gchat.conversation import Message
from gchat.tasks import choices, conversations, numbers
from gchat.tasks.rows import Row
from gchat.tasks.task import Item, Kind, assistant, user

_MARKS = re.compile(r"[\W_]+")


def kind(row: Row) -> Kind:
    """Kind of a file, by its first row."""
    if "choices" in row.values:
        return "choice"
    return "generate" if {"question", "answer"} <= row.values.keys() else "text"


def item(row: Row) -> Item:
    """The item of a row."""
    if kind(row) == "text":
        return conversations.item(row)
    text = row.text("question")
    if kind(row) == "choice":
        texts = row.texts("choices")
        return choices.item(row, text, texts, _gold(row, texts))
    given = row.value("answer")
    answers = [str(one) for one in (given if isinstance(given, list) else [given])]
    if not answers or not all(answer.strip() for answer in answers):
        raise row.wrong("answer", "is empty")
    return Item(row.name, user(text), assistant(answers[0]), meta={"answers": tuple(answers)})


def _gold(row: Row, texts: tuple[str, ...]) -> int:
    field = "answer" if "answer" in row.values else "gold"
    given = row.value(field)
    if isinstance(given, str):
        letters = choices.LETTERS[: len(texts)]
        if given in texts:
            return texts.index(given)
        if given.strip() in tuple(letters):
            return letters.index(given.strip())
    return row.index(field, len(texts))


def grade(asked: Item, said: Message) -> float:
    """1 where the answer is one of the references."""
    if asked.gold is not None:
        return choices.grade(asked, said)
    return float(any(_same(answer, said.content) for answer in asked.meta["answers"]))


def _same(reference: str, text: str) -> bool:
    number = numbers.last(reference)
    if number is not None and not re.search(r"[^\W\d]", reference):
        return numbers.last(text) == number
    return _plain(reference) == _plain(text)


def _plain(text: str) -> str:
    return _MARKS.sub(" ", text).strip().casefold()

"""Files of one's own: lines of JSON, all of one of three kinds.

    {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}      multiple choice; or "B", or "4"
    {"question": "Capital of France?", "answer": "Paris"}           graded; a list holds all answers
    {"messages": [{"role": "user", …}, {"role": "assistant", …}]}   to train on

The third kind is all that `Conversation.from_json` reads: prompt and completion, instruction and
response. A written answer is right if its final number is the reference's, where that is one number
and nothing else, or if it is the reference's text, apart from case, punctuation and white space.
Symbols count: C++ is not C#, and 3/4 is not 3-4. So does punctuation where a reference has nothing
else.
"""

import re
import unicodedata

from gchat.conversation import Message
from gchat.tasks import choices, conversations, numbers
from gchat.tasks.rows import Row
from gchat.tasks.task import Item, Kind, assistant, user

# Markdown and TeX around a text or its parts (**Paris**, $x$), and before an answer.
_WRAPPED = re.compile(r"(?<![^\W_])(\*{1,3}|\${1,2})(?=\S)(.+?)(?<=\S)\1(?![^\W_])")
_LISTED = re.compile(r"\A(?:[-*\u2022]|#{1,6})\s+")
_DASH = re.compile(r"(?<=\d)\s*[-\u2010-\u2015]\s*(?=\d)")
_AROUND_SYMBOLS = re.compile(r"\s*([^\w\s])\s*")
_SYMBOLS = frozenset("#$%&*+/<=>@\\^|~")


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
    listed = given if isinstance(given, list) else [given]
    if any(one is None or isinstance(one, dict | list) for one in listed):
        raise row.wrong("answer", "is no text, no number and no list of them")
    answers = [str(one) for one in listed]
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
    number = numbers.whole(reference)
    if number is not None:
        return numbers.last(text) == number
    plain = _plain(reference)
    if not plain:
        return reference.strip() == text.strip()
    return plain == _plain(text)


def _plain(text: str) -> str:
    """A text without its case, its punctuation and its layout."""
    text = unicodedata.normalize("NFC", text).strip()
    text = _DASH.sub("-", _LISTED.sub("", _WRAPPED.sub(r"\2", text)))
    kept = "".join(c if _counts(text, place) else " " for place, c in enumerate(text))
    return _AROUND_SYMBOLS.sub(r"\1", " ".join(kept.split())).casefold()


def _counts(text: str, place: int) -> bool:
    """True for a character that is no punctuation: another in its place says something else."""
    one, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if one.isalnum() or one in _SYMBOLS:
        return True
    if one in "-.:":  # a sign, or between the numbers of a time, a date, a version
        return not before.isalpha() and (after.isdigit() or (one == "-" and after.isalpha()))
    # Currencies and mathematics; marks on letters, such as the vowels of Indic scripts.
    category = unicodedata.category(one)
    on_letter = category in ("Mn", "Mc") and unicodedata.category(before or " ")[0] in "LM"
    return on_letter or category in ("Sc", "Sm")

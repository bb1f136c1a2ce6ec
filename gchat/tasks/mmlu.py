"""MMLU: 57 subjects, four choices each (Hendrycks et al. 2020, arXiv 2009.03300).

Rows: `question, choices, answer, subject` as on the hub; `question, choice0 … choice3, answer`, or
the original files without a header, whose answer is a letter and whose name is the subject.
"""

from pathlib import PurePath

from gchat.tasks import choices
from gchat.tasks.places import Place
from gchat.tasks.rows import Row
from gchat.tasks.task import Item

PLACE = Place(
    "cais/mmlu",
    "c30699e8356da336a370243923dbaf21066bb9fe",
    "all",
    # There is no other training split; it is made of questions of other tests.
    splits=(("train", "auxiliary_train"), ("validation", "validation")),
)
HEADER = ("question", "choice0", "choice1", "choice2", "choice3", "answer")


def item(row: Row) -> Item:
    """The item of a row."""
    text = row.text("question")
    if "choices" in row.values:
        texts = row.texts("choices")
    else:
        texts = tuple(row.text(name) for name in HEADER[1:-1])
    answer = row.value("answer")
    if isinstance(answer, str) and answer.strip() in tuple(choices.LETTERS[: len(texts)]):
        gold = choices.LETTERS.index(answer.strip())
    else:
        gold = row.index("answer", len(texts))
    subject = row.values.get("subject") or _subject(row.where)
    return choices.item(row, text, texts, gold, subject=str(subject))


def _subject(where: str) -> str:
    """`anatomy` of `mmlu/test/anatomy_test.csv, line 2`."""
    stem = PurePath(where.rpartition(", ")[0]).name.partition(".")[0]
    name, _, split = stem.rpartition("_")
    return name.replace("_", " ") if split in ("test", "dev", "val", "train") else ""

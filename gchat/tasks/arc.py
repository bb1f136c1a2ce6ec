"""ARC: science questions of school exams, easy and challenging (Clark et al. 2018, 1803.05457).

Rows: `question, choices {text, label}, answerKey` as on the hub; `question {stem, choices}` as AI2
publishes them; or `query, choices, gold` as in the bundle of CORE.
"""

from collections.abc import Mapping

from gchat.tasks import choices
from gchat.tasks.places import Place
from gchat.tasks.rows import Row
from gchat.tasks.task import Item

_REPOSITORY, _COMMIT = "allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453"
EASY = Place(_REPOSITORY, _COMMIT, "ARC-Easy", files=("arc_easy", "ARC-Easy"))
CHALLENGE = Place(_REPOSITORY, _COMMIT, "ARC-Challenge", files=("arc_challenge", "ARC-Challenge"))


def item(row: Row) -> Item:
    """The item of a row."""
    if "query" in row.values:
        text = row.text("query").removeprefix("Question:").strip()
        texts = row.texts("choices")
        return choices.item(row, text, texts, row.index("gold", len(texts)))
    given = row.value("question")
    if isinstance(given, Mapping):
        inner = Row(given, row.where, row.name)
        text, listed = inner.text("stem"), inner.value("choices")
        if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
            raise inner.wrong("choices", "is no list of objects with 'text' and 'label'")
        each = [Row(one, f"{row.where}, choice {i}", "") for i, one in enumerate(listed, 1)]
        texts = [one.text("text", empty=True) for one in each]
        labels = [one.text("label") for one in each]
    else:
        text = row.text("question")
        listed = row.value("choices")
        if not isinstance(listed, Mapping):
            raise row.wrong("choices", "is no object with 'text' and 'label'")
        inner = Row(listed, row.where, row.name)
        texts, labels = inner.texts("text"), inner.texts("label")
    texts = row.texts("choices", list(texts))
    key = row.text("answerKey")
    if len(labels) != len(texts):
        raise row.wrong("choices", f"has {len(texts)} texts and {len(labels)} labels")
    if key not in labels:
        raise row.wrong("answerKey", f"is {key!r}, none of the labels {', '.join(labels)}")
    return choices.item(row, text, texts, list(labels).index(key), letters=tuple(labels))

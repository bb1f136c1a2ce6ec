"""Files that the steps of a factory hand one another, made from the records."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.errors import DataError
from gchat.synth.features import features
from gchat.synth.planning import read_windows
from gchat.synth.records import read

Row = dict[str, Any]
MAX_TERMS = 200
_MIN_TERM_USES = 3


def training(records: Path, out: Path) -> None:
    """Splits the training records: passages for Q-PT and as plain text, the rest for SFT.

    Raises:
        DataError: there is nothing to train on.
    """
    rows = list(read(records / "train.jsonl"))
    passages = [row for row in rows if row["kind"] == "qpt"]
    others = [row for row in rows if row["kind"] != "qpt"]
    if not passages or not others:
        raise DataError(f"{records} has too few training records", "give a larger corpus")
    _write(out / "qpt.jsonl", (_pair(row) for row in passages))
    _write(out / "sft.jsonl", (_pair(row) for row in others))
    texts = dict.fromkeys(row["answer"] for row in passages)
    _write(out / "text.jsonl", ({"text": text} for text in texts))
    storage.write_text(out / "terms.txt", "\n".join(terms(records)) + "\n")


def terms(records: Path) -> list[str]:
    """Names of one word that the training articles use again and again, the commonest first."""
    trained = {row["source"]["article"] for row in read(records / "train.jsonl")}
    counted: Counter[str] = Counter()
    for window in read_windows(records).values():
        if window.article in trained:
            for feature in features(window.sentences):
                if feature.kind not in ("date", "number"):
                    counted.update(w for w in feature.value.split() if _is_term(w))
    return [word for word, n in counted.most_common(MAX_TERMS) if n >= _MIN_TERM_USES]


def _is_term(word: str) -> bool:
    return len(word) > 3 and word.isalpha() and word[0].isupper()


def questions(records: Path, out: Path, count: int) -> None:
    """Questions of held-out phrasings and articles, `count` of each, drawn by a fixed seed."""
    rows: list[Row] = []
    windows = read_windows(records)
    for part in ("heldout_phrasing", "heldout_article"):
        listed = [row for row in read(records / f"{part}.jsonl") if row["kind"] != "qpt"]
        rows += random.Random(f"factory {part}").sample(listed, min(count, len(listed)))
    if not rows:
        raise DataError(f"{records} holds nothing out", "give more articles")
    _write(out, (_question(row, windows[row["source"]["window"]].text) for row in rows))


def _question(row: Row, snippet: str) -> Row:
    meta = {"snippet": snippet, "question": row["question"], "reference": row["answer"],
            "split": row["split"], "style": row["style"], "kind": row["kind"]}  # fmt: skip
    return {
        "messages": [{"role": "user", "content": row["question"]}],
        "id": row["id"],
        "meta": meta,
    }


def _pair(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"]}


def _write(path: Path, rows: Iterable[Row]) -> None:
    with storage.open_atomic(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

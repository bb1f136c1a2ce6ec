"""Filters that look at all records together: near-duplicates, evaluation sets, what is held out."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gchat.data.curation.contamination import EvalNgrams
from gchat.data.curation.near import Duplicates, band_hashes, near_copies, signatures
from gchat.data.curation.shingles import hashed
from gchat.synth.filters.reason import Reason

DUPLICATES = Duplicates(threshold=0.8, ngram=3, bands=32, rows=4)
_BATCH = 4096
_WORD = re.compile(r"\w+")
Row = dict[str, Any]


def plain(text: str) -> str:
    """A text without case and marks."""
    return " ".join(_WORD.findall(text.lower()))


def near_duplicates(records: Sequence[Row]) -> list[Reason | None]:
    """Records whose question came before, in these or nearly these words.

    The two orders of a binary choice are one question here. Q-PT's are left alone: the same
    phrasing asks for many passages, and many phrasings for the same.
    """
    texts = [_compared(record) for record in records]
    if not texts:
        return []
    rows, hashes = [], []
    for start in range(0, len(texts), _BATCH):
        made = signatures(hashed(texts[start : start + _BATCH]), DUPLICATES)
        rows.append(made)
        hashes.append(band_hashes(made, DUPLICATES))
    signatures_DH, bands = np.concatenate(rows), np.concatenate(hashes, axis=1)
    considered = np.array([len(text.split()) > 0 for text in texts])
    copies = near_copies(
        iter(bands), lambda numbers: signatures_DH[numbers], considered, DUPLICATES.threshold
    )
    # A pair's second order is its first's copy, and stays with it.
    first: dict[str, bool] = {}
    made_reasons: list[Reason | None] = []
    for record, copy in zip(records, copies.tolist(), strict=True):
        if record["kind"] == "contrast":
            copy = first.setdefault(record["pair"], copy)
        made_reasons.append(
            Reason("duplicate", "nearly the same was asked before") if copy else None
        )
    return made_reasons


def _compared(record: Row) -> str:
    if record["kind"] == "qpt":
        return ""
    if record["kind"] == "contrast":
        question = record["question"]
        for choice in record["choices"]:
            question = question.replace(choice, " ")
        return plain(f"{question} {' '.join(sorted(record['choices']))}")
    return plain(record["question"])


def contamination(known: EvalNgrams, where: str) -> Callable[[Sequence[Row]], list[Reason | None]]:
    """Records that share 13 words in a row (or a whole shorter item) with an evaluation set."""

    def check(records: Sequence[Row]) -> list[Reason | None]:
        made: list[Reason | None] = []
        for start in range(0, len(records), _BATCH):
            part = records[start : start + _BATCH]
            texts = [f"{r['question']} {r['answer']}" for r in part]
            for hits in known.hits(hashed(texts)).tolist():
                made.append(Reason("contaminated", f"{where} has words of it") if hits else None)
        return made

    return check


def asked_elsewhere(records: Sequence[Row]) -> list[Reason | None]:
    """Records held out and trained as well: the question word for word, or the same two choices.

    A question goes from training; of a choice the held-out record goes, because overlapping
    windows train it in several phrasings.
    """
    heldout = {plain(r["question"]) for r in records
               if r["split"] == "heldout_phrasing" and r["kind"] != "qpt"}  # fmt: skip
    choices = {_choice(r) for r in records if r["split"] == "train" and r["kind"] == "contrast"}

    def reason(record: Row) -> Reason | None:
        part, kind = record["split"], record["kind"]
        if kind == "contrast" and part == "heldout_phrasing" and _choice(record) in choices:
            return Reason("leak", "the same choice is trained")
        if kind != "qpt" and part == "train" and plain(record["question"]) in heldout:
            return Reason("leak", "a held-out record asks the same")
        return None

    return [reason(record) for record in records]


def _choice(record: Row) -> tuple[str, str, frozenset[str]]:
    return record["source"]["article"], _fact(record), frozenset(record["choices"])


def untrained(records: Sequence[Row]) -> list[Reason | None]:
    """Held-out phrasings of facts that no training record teaches.

    A fact is known where templates wrote the record: one of its sentence must be answered with its
    value. Of a model's records the window stands for the fact.
    """
    facts: set[tuple[str, str]] = set()
    said: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record["split"] == "train":
            article, fact = record["source"]["article"], _fact(record)
            facts.add((article, fact))
            said.setdefault((article, fact.partition(":")[0]), []).append(plain(record["answer"]))

    def taught(record: Row) -> bool:
        article, fact = record["source"]["article"], _fact(record)
        if (article, fact) in facts or record["kind"] == "qpt":
            return (article, fact) in facts
        number, _, rest = fact.partition(":")
        value = plain(rest.partition(":")[2] or record["answer"])
        return any(f" {value} " in f" {answer} " for answer in said.get((article, number), ()))

    return [
        Reason("untrained", "no training record is about its fact")
        if record["split"] == "heldout_phrasing" and not taught(record)
        else None
        for record in records
    ]


def _fact(record: Row) -> str:
    return str(record["fact"] if "fact" in record else record["source"]["window"])

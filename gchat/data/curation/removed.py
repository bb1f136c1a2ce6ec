"""Removed documents: counts by rule, and a few samples to look at."""

import heapq
from collections import Counter
from typing import Any

from gchat.data.curation.chunks import text_bytes
from gchat.data.curation.rules import Reason
from gchat.data.work import position

SAMPLES = 5
_SAMPLE_CHARS = 400


class Removed:
    """Counts documents and bytes by rule; keeps the samples whose hash is lowest.

    So the samples are spread over the corpus and do not depend on who worked on what.
    """

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.edits: Counter[str] = Counter()
        self.samples: dict[str, list[tuple[float, float, str]]] = {}

    def add(self, reason: Reason, text: str) -> None:
        """One removed document."""
        self.documents[reason.rule] += 1
        self.bytes[reason.rule] += text_bytes(text)
        self._sample(reason.rule, position(text), float(reason.value), text[:_SAMPLE_CHARS])

    def count_edits(self, edits: Counter[str]) -> None:
        """Lines dropped and marks set in documents that stay."""
        self.edits.update(edits)

    def _sample(self, rule: str, at: float, value: float, text: str) -> None:
        held = self.samples.setdefault(rule, [])
        item = (-at, value, text)  # a heap's first is its smallest: the hash that is highest
        if item in held:
            return
        if len(held) < SAMPLES:
            heapq.heappush(held, item)
        else:
            heapq.heappushpop(held, item)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "documents": dict(self.documents),
            "bytes": dict(self.bytes),
            "edits": dict(self.edits),
            "samples": {
                rule: [{"hash": -at, "value": value, "text": text} for at, value, text in held]
                for rule, held in self.samples.items()
            },
        }

    def merge(self, raw: dict[str, Any]) -> None:
        """Adds what `to_json` gave."""
        self.documents.update(raw["documents"])
        self.bytes.update(raw["bytes"])
        self.edits.update(raw["edits"])
        for rule, samples in raw["samples"].items():
            for sample in samples:
                self._sample(rule, sample["hash"], sample["value"], sample["text"])

    def ordered(self) -> list[tuple[str, int, int, list[dict[str, Any]]]]:
        """(rule, documents, bytes, samples), what removed most first."""
        samples = self.to_json()["samples"]
        return [
            (rule, count, self.bytes[rule], sorted(samples[rule], key=lambda s: s["hash"]))
            for rule, count in sorted(self.documents.items(), key=lambda x: (-x[1], x[0]))
        ]

"""The stages of curation. Each is a picklable job whose tasks leave files, the last one atomically.

    Filter   per unit    rules, edits, decontamination; survivors with signatures, in chunks
    Compare  once        exact copies and near-duplicates over all chunks
    Score    per unit    bits per byte of what is left (only with a scorer)
    Finish   per unit    what is dropped for good, up-sampling, one output file

Any engine that calls every task at least once gives the same result: a task whose marker is there
returns at once, and one that is repeated writes the same bytes.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gchat.data.curation import chunks, near, pii
from gchat.data.curation.contamination import EvalNgrams
from gchat.data.curation.options import Options, times
from gchat.data.curation.removed import Removed
from gchat.data.curation.rules import Reason, Words
from gchat.data.curation.scores import Maker
from gchat.data.curation.shingles import hashed
from gchat.data.sources.unit import Row, Tally, Unit
from gchat.data.work import position

WORK = "curate"
SCRATCH = f".{WORK}"
PART = re.compile(r"part-\d{6,}\.jsonl\.zst")
_BATCH_DOCUMENTS = 512
_BATCH_CHARS = 4 << 20


def part_name(unit: int) -> str:
    """Name of the output file of a unit."""
    return f"part-{unit:06d}.jsonl.zst"


def marker(folder: Path, stage: str, index: int) -> Path:
    """Says that a task is done, and what it found."""
    return folder / SCRATCH / f"{stage}-{index:06d}.json"


def done(folder: Path, stage: str, index: int) -> dict[str, Any] | None:
    """Result of a finished task; None where it is not finished."""
    path = marker(folder, stage, index)
    return json.loads(storage.read_text(path)) if path.exists() else None


@dataclasses.dataclass(frozen=True)
class Filter:
    """Task (number, unit): reads a unit and keeps what the rules leave."""

    options: Options
    evals: EvalNgrams | None

    def __call__(self, task: tuple[int, Unit]) -> dict[str, Any]:
        """Does one unit; returns what the marker holds."""
        index, unit = task
        folder = self.options.out
        if (before := done(folder, "filter", index)) is not None:
            return before
        removed = Removed()
        tally = Tally(max_bad=self.options.max_bad)
        kept = 0
        read = Counter(documents=0, bytes=0)
        domains = self.options.web.domains()
        with chunks.Writer(folder / SCRATCH, index, self.options.duplicates) as writer:
            for batch in _batches(unit.read(tally)):
                read["documents"] += len(batch)
                read["bytes"] += sum(chunks.text_bytes(row.text) for row in batch)
                for row, h in self._survivors(batch, removed, domains):
                    kept += len(row)
                    writer.add(row, h)
        result = {
            "unit": unit.name,
            "read": dict(read),
            "kept": kept,
            "chunks": writer.names,
            **tally.counts(),
            "removed": removed.to_json(),
        }
        storage.write_text(marker(folder, "filter", index), json.dumps(result))
        return result

    def _survivors(
        self, batch: list[Row], removed: Removed, domains: frozenset[str]
    ) -> Iterator[tuple[list[Row], Any]]:
        """Documents of a batch that stay, with the hashes of their words."""
        left: list[tuple[Row, Words]] = []
        for row in batch:
            words, reason = self._alone(row, removed, domains)
            if reason is None:
                left.append((Row(words.text, row.meta), words))
            else:
                removed.add(reason, row.text)
        if not left:
            return
        h = hashed([row.text for row, _ in left])
        reasons: list[Reason | None] = [None] * len(left)
        if "repetition" in self.options.rules:
            reasons = self.options.repetition.reasons([words for _, words in left], h)
        if self.evals is not None:
            for i, hits in enumerate(self.evals.hits(h).tolist()):
                if hits and reasons[i] is None:
                    reasons[i] = Reason("contamination.eval_ngram", hits)
        stays = [reason is None for reason in reasons]
        for (row, _), reason in zip(left, reasons, strict=True):
            if reason is not None:
                removed.add(reason, row.text)
        rows = [row for (row, _), stay in zip(left, stays, strict=True) if stay]
        if rows:
            yield rows, h if all(stays) else hashed([row.text for row in rows])

    def _alone(
        self, row: Row, removed: Removed, domains: frozenset[str]
    ) -> tuple[Words, Reason | None]:
        """The rules that look at one document, in the order of their cost."""
        options, families = self.options, self.options.rules
        words = Words.of(row.text)
        if "web" in families and (reason := options.web.reason(words, row.meta, domains)):
            return words, reason
        if "c4" in families:
            text, lines = options.c4.edited(row.text)
            removed.count_edits(lines)
            words = Words.of(text) if text != row.text else words
            if reason := options.c4.reason(words):
                return words, reason
        if options.pii:
            text, marks = pii.scrub(words.text)
            removed.count_edits(marks)
            words = Words.of(text) if marks else words
        if "gopher" in families and (reason := options.gopher.reason(words)):
            return words, reason
        if "fineweb" in families and (reason := options.fineweb.reason(words)):
            return words, reason
        return words, None


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += len(row.text)
        if len(batch) == _BATCH_DOCUMENTS or chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


@dataclasses.dataclass(frozen=True)
class Compare:
    """Task 0: finds copies over all chunks and writes, for each chunk, what to drop."""

    options: Options
    units: int

    def __call__(self, task: int) -> dict[str, Any]:
        """Does one task; returns what the marker holds."""
        folder = self.options.out
        if (before := done(folder, "compare", task)) is not None:
            return before
        names = [
            name
            for index in range(self.units)
            for name in (done(folder, "filter", index) or {"chunks": []})["chunks"]
        ]
        parts = [chunks.Chunk(folder / SCRATCH, name) for name in names]
        verdict = self._verdict(parts)
        at = 0
        for part in parts:
            part.write_verdict(verdict[at : at + part.documents])
            at += part.documents
        result = {
            "exact": int((verdict == near.EXACT).sum()),
            "near": int((verdict == near.NEAR).sum()),
            "documents": len(verdict),
        }
        storage.write_text(marker(folder, "compare", task), json.dumps(result))
        return result

    def _verdict(self, parts: Sequence[chunks.Chunk]) -> np.ndarray:
        options = self.options.duplicates
        verdict = np.zeros(sum(part.documents for part in parts), np.uint8)
        if options.exact and len(verdict):
            hashes = np.concatenate([part.hashes() for part in parts])
            verdict[near.exact_copies(hashes)] = near.EXACT
        if options.near and len(verdict):
            bands = (np.concatenate([part.band(b) for part in parts]) for b in range(options.bands))
            rows = chunks.SignatureRows(parts, options.hashes)
            copies = near.near_copies(bands, rows, verdict == near.KEPT, options.threshold)
            verdict[copies] = near.NEAR
        return verdict


@dataclasses.dataclass(frozen=True)
class Score:
    """Task n: bits per byte of the documents of unit n that are no copies."""

    options: Options
    maker: Maker

    def __call__(self, task: int) -> dict[str, Any]:
        """Does one task; returns what the marker holds."""
        folder = self.options.out
        if (before := done(folder, "score", task)) is not None:
            return before
        names = (done(folder, "filter", task) or {"chunks": []})["chunks"]
        for name in names:
            part = chunks.Chunk(folder / SCRATCH, name)
            scores = np.full(part.documents, np.nan, np.float32)
            kept = part.verdict() == near.KEPT
            texts = [row.text for row, keep in zip(part.rows(), kept, strict=True) if keep]
            if texts:
                scores[kept] = _scorer(self.maker)(texts)
            part.write_scores(scores)
        result = {"chunks": len(names)}
        storage.write_text(marker(folder, "score", task), json.dumps(result))
        return result


_made: dict[Maker, Any] = {}


def _scorer(maker: Maker) -> Any:
    """The scorer of this process; making one reads a model."""
    if maker not in _made:
        _made[maker] = maker()
    return _made[maker]


@dataclasses.dataclass(frozen=True)
class Finish:
    """Task n: writes what stays of unit n, as often as it was asked for."""

    options: Options
    scored: bool
    max_bpb: float

    def __call__(self, task: int) -> dict[str, Any]:
        """Does one task; returns what the marker holds."""
        folder = self.options.out
        if (before := done(folder, "finish", task)) is not None:
            return before
        filtered: dict[str, Any] = done(folder, "filter", task) or {"chunks": [], "unit": ""}
        upsampling = self.options.upsampling()
        matched = Counter({pattern: 0 for pattern, _ in upsampling})
        removed = Removed()
        written = Counter(documents=0, bytes=0, different=0, skipped=0)
        with chunks.OutputFile(folder / part_name(task)) as output:
            for name in filtered["chunks"]:
                part = chunks.Chunk(folder / SCRATCH, name)
                for row, reason in self._judged(part):
                    if reason is not None:
                        removed.add(reason, row.text)
                        continue
                    pattern, repeat = times(row.meta.get("file") or filtered["unit"], upsampling)
                    if pattern is not None:
                        matched[pattern] += 1
                    # A fraction is decided by the hash of the text: the same on every machine.
                    count = int(repeat) + (position(row.text) < repeat % 1)
                    written["different"] += count > 0
                    written["skipped"] += count == 0  # sampled down by a factor below one
                    written["documents"] += count
                    written["bytes"] += count * chunks.text_bytes(row.text)
                    for _ in range(count):
                        output.write(row)
        result = {
            "written": dict(written),
            "matched": dict(matched),
            "removed": removed.to_json(),
        }
        storage.write_text(marker(folder, "finish", task), json.dumps(result))
        return result

    def _judged(self, part: chunks.Chunk) -> Iterator[tuple[Row, Reason | None]]:
        limits = self.options.perplexity
        verdict = part.verdict()
        scores = part.scores() if self.scored else np.zeros(part.documents)
        for row, copy, bpb in zip(part.rows(), verdict.tolist(), scores.tolist(), strict=True):
            if copy == near.EXACT:
                yield row, Reason("duplicate.exact", 1)
            elif copy == near.NEAR:
                yield row, Reason("duplicate.near", 1)
            elif self.scored and bpb > self.max_bpb:
                yield row, Reason("perplexity.max_bpb", bpb)
            elif self.scored and limits.min_bpb is not None and bpb < limits.min_bpb:
                yield row, Reason("perplexity.min_bpb", bpb)
            else:
                yield row, None

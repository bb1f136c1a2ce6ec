"""The end of a generation: all results together, filtered as a whole, written and counted."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gaia import storage
from gchat.data.curation import contamination
from gchat.data.curation.contamination import EvalNgrams
from gchat.queue import Queue
from gchat.synth import contrasts, qpt_records
from gchat.synth.filters import corpus_wide
from gchat.synth.filters.reason import Reason
from gchat.synth.planning import Job, Plan, heldout_texts
from gchat.synth.split import PARTS
from gchat.synth.yields import Report, count

REJECTS = "rejects.jsonl"
Row = dict[str, Any]
Filter = tuple[str, Callable[[Sequence[Row]], list[Reason | None]]]


def finish(
    folder: Path, job: Job, plan: Plan, queue: Queue, decontaminate: Sequence[str] = ()
) -> Report:
    """Writes records, rejects and the report of a generation whose items have ended.

    Other work of the same queue is left alone.
    """
    records: list[Row] = []
    rejects: list[Row] = list(plan.dropped)
    tokens, cost = [0, 0], 0.0
    prefix = job.prefix
    for result in queue.results():
        if not result.id.startswith(prefix):
            continue
        records += result.result["records"]
        rejects += result.result["rejects"]
        tokens = [a + b for a, b in zip(tokens, result.result["tokens"], strict=True)]
        cost += result.result["cost"]
    if "qpt" in job.kinds:
        records += qpt_records.write(job, plan)
    records = _in_order(records, plan)
    kept, dropped = through(records, filters(heldout_texts(plan), decontaminate))
    rejects += dropped
    dead = [{"id": d.item.id, "phase": "queue", "filter": "dead", "why": d.reason,
             "style": d.item.payload.get("style"), "source": d.item.payload["window"]}
            for d in queue.dead() if d.item.id.startswith(prefix)]  # fmt: skip
    report = count(job, plan, kept, rejects, dead, tokens, cost)
    write(folder, kept, [*rejects, *dead])
    storage.write_text(folder / "report.json", json.dumps(report.facts, indent=1) + "\n")
    storage.write_text(folder / "report.md", "\n".join(report.lines()) + "\n")
    return report


def filters(heldout: Iterable[str], decontaminate: Sequence[str]) -> list[Filter]:
    """Filters over all records, in their order.

    Args:
        heldout: texts of held-out articles, of which training may have nothing.
        decontaminate: files of evaluation sets, of which no record may have anything.
    """
    made: list[Filter] = [("corpus", corpus_wide.near_duplicates)]
    texts = list(heldout)
    if texts:
        check = corpus_wide.contamination(EvalNgrams(iter(texts)), "a held-out article")
        made.append(("split", _of_training(check)))
    if decontaminate:
        known = contamination.load(decontaminate)
        made.append(("split", corpus_wide.contamination(known, "an evaluation set")))
    return [*made, ("split", corpus_wide.asked_elsewhere), ("split", corpus_wide.untrained)]


def _of_training(
    check: Callable[[Sequence[Row]], list[Reason | None]],
) -> Callable[[Sequence[Row]], list[Reason | None]]:
    """The same filter, on records of trained articles alone."""

    def checked(records: Sequence[Row]) -> list[Reason | None]:
        return [
            reason if record["split"] != "heldout_article" else None
            for record, reason in zip(records, check(records), strict=True)
        ]

    return checked


def through(records: Sequence[Row], wanted: Sequence[Filter]) -> tuple[list[Row], list[Row]]:
    """Records that pass, and rejects; a contrastive record takes its other order with it."""
    kept, rejects = list(records), []
    for phase, check in wanted:
        reasons = check(kept)
        left = []
        for record, reason in zip(kept, reasons, strict=True):
            if reason is None:
                left.append(record)
            else:
                rejects.append(record | _why(phase, reason))
        kept = left
    alone = contrasts.unpaired(kept)
    for record in kept:
        if record.get("pair") in alone:
            why = Reason("unpaired", "its other order was dropped")
            rejects.append(record | _why("corpus", why))
    return [r for r in kept if r.get("pair") not in alone], rejects


def _why(phase: str, reason: Reason) -> Row:
    return {"phase": phase, "filter": reason.filter, "why": reason.why}


def _in_order(records: list[Row], plan: Plan) -> list[Row]:
    """Records in the order of windows and styles, however workers finished them; each once."""
    place = {window.id: i for i, window in enumerate(plan.windows)}
    unique = {record["id"]: record for record in records}
    return sorted(
        unique.values(), key=lambda r: (place.get(r["source"]["window"], -1), r["kind"], r["id"])
    )


def write(folder: Path, records: Sequence[Row], rejects: Sequence[Row]) -> None:
    """A file for each part of the split, and one of rejects; each whole or not at all."""
    for part in PARTS:
        _write(folder / f"{part}.jsonl", [r for r in records if r["split"] == part])
    _write(folder / REJECTS, rejects)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with storage.open_atomic(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def reasons(rejects: Iterable[Row]) -> Counter[str]:
    """Number of rejects by phase and filter."""
    return Counter(f"{r['phase']}: {r['filter']}" for r in rejects)

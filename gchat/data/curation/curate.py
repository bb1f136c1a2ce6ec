"""Curation from beginning to end: filter, compare, score, finish, report.

The same options give the same files whatever the number of workers or the engine, and whether or
not the work was interrupted. report.json is written last.
"""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gaia.errors import ConfigError, DataError, GaiaError
from gchat.data import pool
from gchat.data.curation import chunks, contamination, report, stages
from gchat.data.curation.engines import run_stage
from gchat.data.curation.options import Options
from gchat.data.curation.removed import Removed
from gchat.data.curation.scores import KenLM, Maker, Ngram
from gchat.data.sources.unit import Corpus
from gchat.data.work import progress_bar

STATE = "parameters.json"


def curate(options: Options, scorer: Maker | None = None, progress: bool | None = None) -> dict:
    """Curates a corpus, or returns the report at once when `out` already holds the result.

    Args:
        scorer: recipe of the perplexity scorer where `options.perplexity.scorer` is a run of
            gchat, which this package cannot load.
        progress: show bars; None shows them on a terminal.

    Returns:
        What report.json holds.

    Raises:
        DataError: no text, everything was removed, or `out` holds another curation.
        ConfigError: an option out of range.
    """
    options.check()
    options = dataclasses.replace(options, out=Path(options.out).expanduser())
    corpus = options.corpus()
    parameters = json.loads(json.dumps(options.parameters(corpus.identity)))
    folder = options.out
    if options.overwrite:
        _clear(folder)
    if (folder / report.JSON).exists():
        _refuse_difference(folder, report.load(folder)["parameters"], parameters)
        return report.load(folder)
    existed = folder.exists()
    try:
        _begin(folder, parameters)
        return _run(options, corpus, scorer, parameters, progress)
    except GaiaError:
        if not any((folder / stages.SCRATCH).glob("filter-*.json")):
            _clear(folder)
            if not existed and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _begin(folder: Path, parameters: dict[str, Any]) -> None:
    """Says whose work this folder holds, or goes on with what an interrupted run left."""
    storage.make_folder(folder / stages.SCRATCH)
    state = folder / stages.SCRATCH / STATE
    if state.exists():
        _refuse_difference(folder, json.loads(storage.read_text(state)), parameters)
    elif others := sorted(f.name for f in folder.glob("part-*")):
        shutil.rmtree(folder / stages.SCRATCH)
        raise DataError(
            f"out = {str(folder)!r} holds {others[0]} but no {report.JSON}",
            "choose another --out, or replace it with --overwrite",
        )
    else:
        storage.write_text(state, json.dumps(parameters))
    for place in (folder, folder / stages.SCRATCH):
        for leftover in place.glob(".*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)


def _refuse_difference(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if differing := sorted(key for key in old | new if old.get(key) != new.get(key)):
        raise DataError(
            f"out = {str(folder)!r} holds a curation with other options: {', '.join(differing)}",
            "choose another --out, or replace it with --overwrite",
        )


def _clear(folder: Path) -> None:
    for pattern in ("part-*.jsonl.zst", "report.*", ".*.tmp"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    shutil.rmtree(folder / stages.SCRATCH, ignore_errors=True)


def _run(
    options: Options,
    corpus: Corpus,
    scorer: Maker | None,
    parameters: dict[str, Any],
    progress: bool | None,
) -> dict:
    """All stages and the report."""
    maker = _maker(options, scorer)
    evals = contamination.load(options.decontaminate) if options.decontaminate else None
    units = list(range(len(corpus.units)))
    workers = options.workers or pool.cores()

    def stage(name: str, job: Any, tasks: list[Any]) -> list[dict[str, Any]]:
        with progress_bar(name, len(tasks), progress, " units") as bar:
            run_stage(
                options.engine, options.out, name, job, tasks, workers, lambda _: bar.update(1)
            )
        numbers = [task if isinstance(task, int) else task[0] for task in tasks]
        return [stages.done(options.out, name, number) or {} for number in numbers]

    tasks = []
    for index, unit in enumerate(corpus.units):
        if unit.fetch is not None and stages.done(options.out, "filter", index) is None:
            unit.fetch()
        tasks.append((index, dataclasses.replace(unit, fetch=None)))
    filtered = stage("filter", stages.Filter(options, evals), tasks)
    stage("compare", stages.Compare(options, len(units)), [0])
    max_bpb = float("inf")
    if maker is not None:
        stage("score", stages.Score(options, maker), units)
        max_bpb = _bound(options, filtered)
    finished = stage("finish", stages.Finish(options, maker is not None, max_bpb), units)
    found = _found(corpus, parameters, filtered, finished, evals, max_bpb)
    if not found["written"]["documents"]:
        worst = ", ".join(rule for rule, *_ in _removed(filtered, finished).ordered()[:3])
        for marker in (options.out / stages.SCRATCH).glob("filter-*.json"):
            marker.unlink()  # nothing here is worth keeping
        raise DataError(
            f"curation left none of {found['read']['documents']:,} documents (most: {worst})",
            "loosen these rules, or leave their family out with --rules",
        )
    report.write(options.out, found, _removed(filtered, finished))
    shutil.rmtree(options.out / stages.SCRATCH, ignore_errors=True)
    return found


def _maker(options: Options, given: Maker | None) -> Maker | None:
    """The recipe of the scorer that the options name."""
    if options.perplexity.scorer is None:
        return None
    kind, _, path = options.perplexity.scorer.partition(":")
    if kind != "run" and not Path(path).exists():
        raise ConfigError(f"scorer = {options.perplexity.scorer!r}: no such file", "check the path")
    if kind == "ngram":
        return Ngram(path)
    if kind == "kenlm":
        return KenLM(path)
    if given is None:
        raise ConfigError(
            f"scorer = {options.perplexity.scorer!r} needs the gchat command",
            "use gchat data curate",
        )
    return given


def _bound(options: Options, filtered: list[dict[str, Any]]) -> float:
    """The highest bits per byte that stay."""
    limits = options.perplexity
    bound = float("inf") if limits.max_bpb is None else limits.max_bpb
    if limits.drop_worst:
        scratch = options.out / stages.SCRATCH
        names = [name for unit in filtered for name in unit["chunks"]]
        scores = np.concatenate([chunks.Chunk(scratch, name).scores() for name in names] or [[]])
        scores = scores[~np.isnan(scores)]
        if len(scores):
            bound = min(bound, float(np.quantile(scores, 1 - limits.drop_worst)))
    return bound


def _removed(filtered: list[dict[str, Any]], finished: list[dict[str, Any]]) -> Removed:
    removed = Removed()
    for found in [*filtered, *finished]:
        removed.merge(found["removed"])
    return removed


def _found(
    corpus: Corpus,
    parameters: dict[str, Any],
    filtered: list[dict[str, Any]],
    finished: list[dict[str, Any]],
    evals: contamination.EvalNgrams | None,
    max_bpb: float,
) -> dict:
    """The figures of the report."""
    read: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for unit in filtered:
        read.update(unit["read"])
    for unit in finished:
        written.update(unit["written"])
    removed = _removed(filtered, finished)
    assert read["documents"] == written["different"] + sum(removed.documents.values()) + sum(
        unit["written"]["skipped"] for unit in finished
    ), "a document was lost or counted twice"
    rules = [
        {"rule": rule, "documents": count, "bytes": size, "samples": samples}
        for rule, count, size, samples in removed.ordered()
    ]
    return {
        "sources": list(corpus.sources),
        "read": dict(read),
        "written": dict(written),
        "removed": rules,
        "edits": dict(sorted(removed.edits.items())),
        "invalid_utf8": sum(unit["invalid_utf8"] for unit in filtered),
        "eval_items": None if evals is None else {"used": evals.items, "short": evals.skipped},
        "max_bpb": None if max_bpb == float("inf") else max_bpb,
        "upsampled": dict(sum((Counter(unit["matched"]) for unit in finished), Counter())),
        "parameters": parameters,
    }

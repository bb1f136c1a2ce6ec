"""Curation from beginning to end: filter, compare, score, finish, report.

The same options give the same files whatever the number of workers or the engine, and whether or
not the work was interrupted. report.json is written last.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gaia import storage
from gaia.errors import ConfigError, DataError
from gaia.work_folder import WorkFolder, refuse_difference, unfinished
from gchat.data import pool
from gchat.data.curation import chunks, contamination, report, stages
from gchat.data.curation.engines import run_stage
from gchat.data.curation.options import Options
from gchat.data.curation.removed import Removed
from gchat.data.curation.scores import KenLM, Maker, Ngram
from gchat.data.progress import progress_bar
from gchat.data.sources.unit import Corpus, oddities

_WHAT = "a curation"


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
    corpus = options.corpus(exclude=options.out)
    folder = options.out
    previous = {} if options.overwrite else _previous(folder)
    identity = corpus.identified(previous.get("identity"))
    parameters = json.loads(json.dumps(options.parameters(identity)))
    if not options.overwrite and (finished := _finished(folder, parameters)) is not None:
        return finished
    with WorkFolder(folder, stages.WORK, what=_WHAT, markers="filter-*.json") as place:
        if options.overwrite:
            place.clear(_names(folder))
        elif (finished := _finished(folder, parameters)) is not None:  # by another process
            return finished
        parts = [stages.part_name(index) for index in range(len(corpus.units))]
        place.begin(parameters, [report.JSON, report.MARKDOWN, report.PICTURE, *parts])
        result = _run(options, corpus, scorer, parameters, progress)
        place.finish()
        return result


def _previous(folder: Path) -> dict[str, Any]:
    """Parameters of the curation in a folder, finished or not; empty where there is none."""
    if (folder / report.JSON).exists():
        return report.load(folder)["parameters"]
    return unfinished(folder, stages.WORK)


def _finished(folder: Path, parameters: dict[str, Any]) -> dict | None:
    """The report in `folder`; None where it holds none.

    Raises:
        DataError: it is of a curation with other parameters, or files of it are gone.
    """
    if not (folder / report.JSON).exists():
        return None
    finished = report.load(folder)
    refuse_difference(folder, finished["parameters"], parameters, _WHAT)
    for name, size in finished.get("parts", {}).items():  # older reports do not list them
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(
                f"{path} is {'cut' if path.is_file() else 'gone'}: the curation had written it",
                "bring it back, or use --overwrite",
            )
    return finished


def _names(folder: Path) -> list[str]:
    """Files of the finished curation in a folder; none where there is no report."""
    if not (folder / report.JSON).exists():
        return []
    parts = [name for name in storage.list_names(folder) if stages.PART.fullmatch(name)]
    return [report.JSON, report.MARKDOWN, report.PICTURE, *parts]


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
    corpus.check_bad(filtered)
    stage("compare", stages.Compare(options, len(units)), [0])
    max_bpb = float("inf")
    if maker is not None:
        stage("score", stages.Score(options, maker), units)
        max_bpb = _bound(options, filtered)
    finished = stage("finish", stages.Finish(options, maker is not None, max_bpb), units)
    figures = _figures(corpus, parameters, filtered, finished, evals, max_bpb)
    if not figures["written"]["documents"]:
        worst = ", ".join(rule for rule, *_ in _removed(filtered, finished).ordered()[:3])
        for marker in (options.out / stages.SCRATCH).glob("filter-*.json"):
            marker.unlink()  # nothing here is worth keeping
        raise DataError(
            f"curation left none of {figures['read']['documents']:,} documents (most: {worst})",
            "loosen these rules, or leave their family out with --rules",
        )
    parts = sorted(name for name in storage.list_names(options.out) if stages.PART.fullmatch(name))
    figures["parts"] = {name: (options.out / name).stat().st_size for name in parts}
    report.write(options.out, figures, _removed(filtered, finished))
    return figures


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
    for unit in [*filtered, *finished]:
        removed.merge(unit["removed"])
    return removed


def _figures(
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
        "oddities": oddities(filtered),
        "eval_items": None if evals is None else {"used": evals.items, "short": evals.skipped},
        "max_bpb": None if max_bpb == float("inf") else max_bpb,
        "upsampled": dict(sum((Counter(unit["matched"]) for unit in finished), Counter())),
        "parameters": parameters,
    }

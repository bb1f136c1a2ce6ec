"""`gchat eval core`: a trained run on CORE, with its outcomes in the run's folder.

The processes of several hosts are started alike (`--coordinator HOST:PORT …`, as in training): all
score, process 0 prints and writes.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gaia_metrics
from gaia import parallel
from gaia.errors import CheckpointError, ConfigError
from gaia.processes.group import Group
from gchat.evals.core import bundle as bundles
from gchat.evals.core import evaluate, summary, tasks
from gchat.evals.core.periodic import metrics
from gchat.evals.progress_line import ProgressLine, clock
from gchat.evals.results import Results
from gchat.run.checkpoints import read_run
from gchat.run.folder import write_atomically
from gchat.run.loading import LoadedRun, load_run
from gchat.score import Scorer


@dataclass(frozen=True)
class EvalCore:
    """CORE of a trained run: 22 tasks, each with its interval, and their mean under two baselines.

    What is done is kept in RUN/evals, and the same command goes on with it. Example:
    gchat eval core --run runs/cpu --bundle eval_bundle --max-per-task 100
    """

    run: str
    """Folder of the run."""
    bundle: str | None = None
    """Folder that nanochat's eval_bundle.zip unpacks to; downloaded once when left out."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks, separated by spaces or commas; all that the bundle holds."""
    max_per_task: int | None = None
    """Evaluate this many items of each task instead of all: the first after a fixed shuffle."""
    json: bool = False
    """Print one JSON object."""


def main(options: EvalCore, group: Group) -> dict[str, Any]:
    """Evaluates, prints and returns the summary.

    Raises:
        GaiaError: the run, the bundle or an option cannot be used.
    """
    wanted = _chosen(options.tasks)
    if options.max_per_task is not None and options.max_per_task < 1:
        raise ConfigError(
            f"--max-per-task is {options.max_per_task}", "use 1 or more, or leave it out for all"
        )
    read_run(options.run)  # named before anything is downloaded
    bundle = bundles.read(options.bundle, wanted, must=options.tasks is not None)
    todo = evaluate.plan(bundle, options.max_per_task)
    mesh = parallel.make_mesh()
    run = load_run(options.run, mesh)
    if run.tokenizer.vocab_size != run.config.model.sizes.vocab:
        raise CheckpointError(
            f"the tokenizer of {options.run!r} has {run.tokenizer.vocab_size} ids, its model "
            f"{run.config.model.sizes.vocab}",
            "put the tokenizer.json that the run was trained with back into its folder",
        )
    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    _say_about(bundle, say)
    facts = _facts(run, bundle, options.max_per_task)
    _check_alike(group, facts | {"tasks": [task.name for task in bundle.tasks]})
    path = Path(options.run) / "evals" / _name(facts)
    scorer = Scorer(run.graph, run.config, mesh)
    begun = time.perf_counter()
    stream = partial(scorer.stream, run.params)
    if group.first:
        before: dict[str, dict[int, bool]] = {}
        with Results(path, facts, partial(evaluate.take, before)) as results:
            done = group.broadcast(lambda: _packed(before))
            if kept := sum(1 for t, i in todo.order if i in before.get(t.name, {})):
                say(f"{kept:,} of {len(todo.order):,} items are done already")
            shown = _Shown(say, scorer)
            counts = evaluate.evaluate(
                todo, run.tokenizer, stream, done=_unpacked(done), progress=shown,
                record=lambda made: results.add([one.record() for one in made]),
            )  # fmt: skip
            shown.end()
    else:
        done = group.broadcast(dict)
        counts = evaluate.evaluate(todo, run.tokenizer, stream, done=_unpacked(done))
    figures = facts | {"bundle_folder": bundle.folder} | summary.summary(counts)
    figures |= {
        "missing_tasks": list(bundle.missing),
        "changed_tasks": list(bundle.changed),
        "seconds": round(time.perf_counter() - begun, 2),
        "tokens_forwarded": scorer.forwarded.tokens,
        "results": str(path),
    }
    if group.first:
        write_atomically(path.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
        kept = path.with_suffix(".metrics")
        if scorer.forwarded.batches or not kept.exists():  # else it is all recorded
            _record(run, kept, figures)
        print(json.dumps(figures) if options.json else _described(figures, bundle))
    return figures


def _chosen(names: tuple[str, ...] | None) -> tuple[tasks.Task, ...]:
    given = None if names is None else [n for part in names for n in part.split(",") if n]
    if given == []:
        raise ConfigError("--tasks names no task", "name some, or leave it out for all")
    return tasks.chosen(given or ())


def _say_about(bundle: bundles.Bundle, say: Callable[[str], None]) -> None:
    if bundle.missing:
        say(f"the bundle has no file for {', '.join(bundle.missing)}: left out")
    if bundle.changed:
        say(f"not the published files, so not comparable: {', '.join(bundle.changed)}")


def _facts(run: LoadedRun, bundle: bundles.Bundle, limit: int | None) -> dict[str, Any]:
    """Everything that decides an item's outcome, for the first line of the results."""
    return {
        "evaluation": "core",
        "step": run.step,
        "weights": run.digest,
        "bundle": bundle.digest,
        "max_per_task": limit,
        "seq_len": run.config.model.seq_len,
        "tokenizer": run.tokenizer.sha256[:16],
    }


def _check_alike(group: Group, facts: Mapping[str, Any]) -> None:
    """All processes must score the same rows: else they would wait for each other for ever.

    Raises:
        ConfigError: a process has another option, run or bundle than process 0.
    """
    by_process = group.all_gather(dict(facts))
    for index, theirs in enumerate(by_process):
        for name, value in by_process[0].items():
            if theirs[name] != value:
                raise ConfigError(
                    f"process {index} evaluates with another {name.replace('_', ' ')} than "
                    f"process 0 ({theirs[name]}, not {value})",
                    "start the same command on every host, with the same files",
                )


def _name(facts: Mapping[str, Any]) -> str:
    limit = "" if facts["max_per_task"] is None else f"-max{facts['max_per_task']}"
    return f"core-step{facts['step']:06d}-{facts['bundle']}{limit}.jsonl"


def _packed(done: evaluate.Done) -> dict[str, str]:
    """Outcomes as text, two bits an item: small enough for the store of a group."""
    packed: dict[str, str] = {}
    for task, items in done.items():
        seen = sum(1 << i for i in items)
        right = sum(1 << i for i, correct in items.items() if correct)
        packed[task] = f"{seen:x} {right:x}"
    return packed


def _unpacked(packed: Mapping[str, str]) -> dict[str, dict[int, bool]]:
    done: dict[str, dict[int, bool]] = {}
    for task, text in packed.items():
        seen, right = (int(word, 16) for word in text.split())
        done[task] = {i: bool(right >> i & 1) for i in range(seen.bit_length()) if seen >> i & 1}
    return done


class _Shown:
    """Progress with the score so far and its interval."""

    def __init__(self, say: Callable[[str], None], scorer: Scorer) -> None:
        self._line, self._scorer = ProgressLine(say), scorer
        self._begun = time.perf_counter()
        self.end = self._line.end

    def __call__(self, state: evaluate.Progress) -> None:
        self._line.show(lambda: self._text(state))

    def _text(self, state: evaluate.Progress) -> str:
        rate = self._scorer.forwarded.tokens / (time.perf_counter() - self._begun)
        counts = {name: count for name, count in state.counts.items() if count.of}
        so_far = ""
        if counts:
            low, high = summary.core_interval(counts, "core_v1")
            so_far = f"  so far {(low + high) / 2:.4f} ± {(high - low) / 2:.4f}"
        return (
            f"core {state.items:,}/{state.of:,} items  {rate:,.0f} tok/s  "
            f"ETA {clock(state.seconds_left)}{so_far}"
        )


def _record(run: LoadedRun, folder: Path, figures: Mapping[str, Any]) -> None:
    """Keeps the figures as metrics: a run of their own, since training's may still be written."""
    recorded = gaia_metrics.init(
        "gchat", f"{run.config.run.name}-core", dir=folder, system_interval=0,
        resume_step=figures["step"] - 1,  # figures of more tasks replace those of fewer
    )  # fmt: skip
    recorded.log(figures["step"], metrics(figures))
    recorded.finish("finished")


def _described(figures: Mapping[str, Any], bundle: bundles.Bundle) -> str:
    lines = [summary.table(figures, bundle.missing)]
    if figures["tasks_scored"] == figures["tasks_of_core"]:
        share = figures["core_v1"] / tasks.GPT2_CORE
        lines.append(f"GPT-2 (1.6B) has {tasks.GPT2_CORE} under v1: this is {share:.1%} of it")
    lines.append(f"results: {figures['results']}")
    return "\n".join(lines)

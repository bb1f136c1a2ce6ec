"""`gchat research run`: one experiment of an agent's loop. One budget, one metric, one line.

The working tree is trained for so many minutes and judged by main's evaluation code; its bits per
byte decide whether the change is kept. `program.md` beside this file tells a coding agent the
rules. Each experiment leaves a line in `results.tsv` and its diff.
"""

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gaia.config import flatten, to_dict
from gaia.errors import ConfigError, DataError
from gaia.writer_lock import WriterLock
from gchat.config import load
from gchat.research import worktrees
from gchat.research.cells import Cell, Result, data_hash, preset_hash, run_cell
from gchat.research.measure import measure, measure_of
from gchat.research.options import check_seeds
from gchat.research.source_tree import DIFF
from gchat.research.worktrees import WORKING_TREE, Tree, make_tree
from gchat.run.folder import write_atomically
from gchat.run.series import Series, read_series

COLUMNS = (
    "time",
    "commit",
    "status",
    "bpb",
    "best",
    "tokens",
    "minutes",
    "description",
    "diff",
    "notes",
)
RESULTS, BUDGET = "results.tsv", "budget.json"
PROGRAM = Path(__file__).with_name("program.md")
_PROBE_STEPS = 30
_PROBE_LENGTH = 10**6
"""Steps that a probe is to have, so that warm-ups and ramps fit; it is stopped long before."""
_GRACE = 1.5
"""Times its budget that a training may take, its start included, before it is ended."""
TOLERANCE, SLACK_S = 0.1, 5.0
"""Share of the budget, and seconds, that steps may take beyond it: neighbours on a shared machine
cost as much between a probe and the end of its training, and a batch ramp compiles again."""
_UNTIMED = "it does not log perf/step_ms and train/tokens: nobody knows how long it takes"


@dataclass(frozen=True)
class Experiment:
    """A finished experiment; `status` is keep, discard or crash."""

    time: float
    commit: str
    status: str
    bpb: float | None
    best: float | None
    """Bits per byte of the best kept one before it."""
    tokens: int
    minutes: float
    description: str
    diff: str
    """File of the change against the judge's commit."""
    error: str = ""
    notes: tuple[str, ...] = ()
    """Sentences on what the figure rests on, where the change touches that."""


def run(
    *,
    minutes: float,
    arguments: Sequence[str],
    data_dir: str,
    seed: int,
    folder: Path,
    judge: str,
    margin: float,
    description: str,
) -> Experiment:
    """Trains the working tree once and adds a line to `results.tsv`.

    Args:
        minutes: of training steps; the tokens that fit are measured on this code and machine.
        arguments: options of `gchat train`.
        data_dir: a prepared data set.
        seed: of every experiment.
        folder: of results, diffs and runs.
        judge: branch whose evaluation code measures, and whose diff is recorded.
        margin: bits per byte by which the best must be beaten to be kept.
        description: of the idea, one line.

    Raises:
        ConfigError: a value cannot work.
        DataError: `results.tsv` is damaged.
        FolderInUse: another experiment is trained there.
        TreeError: the judge is unknown, or the working tree cannot be laid out.
    """
    check(minutes, margin, seed, description)
    with WriterLock(folder / ".gaia.lock", f"an experiment in {folder}"):
        return _run(minutes, arguments, data_dir, seed, folder, judge, margin, description)


def check(minutes: float, margin: float, seed: int, description: str) -> None:
    """Raises ConfigError for values of `run` that cannot work."""
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes is {minutes}", "use a number above 0")
    if not 0 <= margin < float("inf"):
        raise ConfigError(f"--margin is {margin}", "use bits per byte, 0 or more")
    if "\t" in description or len(description.splitlines()) > 1:
        raise ConfigError("--description has a tab or a line break", "write one plain line")
    check_seeds([seed], "--seed")


def _run(
    minutes: float, arguments: Sequence[str], data_dir: str, seed: int, folder: Path, judge: str,
    margin: float, description: str,
) -> Experiment:  # fmt: skip
    root, began = worktrees.repository(), time.time()
    first = make_tree(root, judge, folder / "code", None)
    tree = make_tree(root, WORKING_TREE, folder / "code", first)
    expected = measure(flatten(to_dict(load(list(arguments), prog="gchat research run"))))
    before = read(folder / RESULTS)
    budget = {"minutes": minutes, "arguments": list(arguments), "seed": seed}
    # A name moves on and a file is edited: the best of before would be another judge's or preset's.
    budget["judge"] = judge if judge == WORKING_TREE else first.code.commit
    budget |= {"preset": preset_hash(arguments)[:12], "data": data_hash(data_dir, arguments)[:12]}
    _check_budget(folder, budget)
    diff = folder / "diffs" / f"{_next_number(folder / 'diffs'):04}.patch"
    diff.parent.mkdir(parents=True, exist_ok=True)
    diff.write_bytes(_diff(tree, first.code.commit))
    best = min((e.bpb for e in before if e.status == "keep" and e.bpb), default=None)
    result = _train(tree, minutes, arguments, data_dir, seed, folder / "runs" / diff.stem)
    result = _measured_alike(result, expected)
    better = result.bpb is not None and (best is None or result.bpb < best - margin)
    done = result.status == "done"
    experiment = Experiment(
        time=round(began, 1),
        commit=tree.code.said,
        status=("keep" if better else "discard") if done else "crash",
        bpb=result.bpb if done else None,
        best=best,
        tokens=result.tokens,
        minutes=round((time.time() - began) / 60, 2),
        description=description,
        diff=str(diff.relative_to(folder)),
        error="" if done else f"{result.status}: {result.error}",
        notes=tree.notes,
    )
    _append(folder / RESULTS, experiment)
    return experiment


def _check_budget(folder: Path, budget: Mapping[str, object]) -> None:
    """Refuses another budget than that of the experiments before: their best is no measure of it.

    Raises:
        ConfigError: naming what differs.
        DataError: the file is damaged.
    """
    path = folder / BUDGET
    if not path.exists():
        write_atomically(path, json.dumps(budget) + "\n")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged", "mend it, or give another --out") from None
    for name, value in budget.items():
        # Folders of before there was a hash of the preset are those of a preset that ships.
        then = before.get(name, "" if name == "preset" else None)
        if then != value:
            what = {"preset": "the preset file's hash", "data": "the data's hash"}.get(name, name)
            back = f", or go back with --judge {then}" if name == "judge" else ""
            raise ConfigError(
                f"{what} is {value or 0}, and the experiments in {folder} have {then or 0}",
                f"give another --out: figures of two budgets do not compare{back}",
            )


def _measured_alike(result: Result, expected: Mapping[str, object]) -> Result:
    """The result; a failed one where the working tree measures otherwise than the judge."""
    if result.status != "done":
        return result
    got = measure_of(Path(result.run_dir))
    for name, value in expected.items():
        # Fields of the data are filled in while a run starts; its hash is in the budget.
        if value is not None and name.startswith(("eval.", "model.")) and got.get(name) != value:
            said = f"it measures another thing: {name} is {got.get(name)} where it was {value}"
            return replace(result, status="failed", error=said)
    return result


def _next_number(diffs: Path) -> int:
    """Number of an experiment: one that was killed left no line, but its patch and its runs."""
    return 1 + max((int(p.stem) for p in diffs.glob("*.patch") if p.stem.isdecimal()), default=0)


def _train(
    tree: Tree, minutes: float, arguments: Sequence[str], data_dir: str, seed: int, place: Path
) -> Result:
    """Measures the speed of this code, then trains for as long as the budget says."""
    digest = data_hash(data_dir, arguments)
    limit = 60 * minutes * _GRACE + 120

    def cell(*more: str) -> Cell:
        return Cell("idea", "", seed, (*arguments, *more), tree.code, data_dir, digest)

    def tokens_that_fit(*length: str, name: str) -> tuple[int, Result]:
        probe = cell(*length, "--eval.every-steps=0")
        rate, result = _speed(probe, place.with_name(f"{place.name}-{name}"), limit)
        return int(60 * minutes * rate), result

    tokens, probe = tokens_that_fit(f"--training.steps={_PROBE_LENGTH}", name="probe")
    config = load(list(arguments), prog="gchat research run")
    if tokens and config.training.batch_size is None:
        # The batch follows from the tokens, and the speed from the batch.
        tokens, probe = tokens_that_fit(f"--training.tokens={tokens}", name="probe-2")
    if not tokens:
        return probe
    result = run_cell(cell(f"--training.tokens={tokens}"), place, timeout_s=limit)
    return _in_time(result, minutes, limit)


def _speed(cell: Cell, folder: Path, limit: float) -> tuple[float, Result]:
    """Tokens per second of a training's first steps, and its result; 0 where it has failed."""

    def has_enough(_: Result) -> bool:
        return len(_series(folder).get("perf/step_ms", ())) >= _PROBE_STEPS

    result = run_cell(cell, folder, watch=has_enough, timeout_s=limit)
    series = _series(folder)
    times = [value for _, value in series.get("perf/step_ms", ())]
    if result.status == "stopped" and len(times) < _PROBE_STEPS:
        said = f"{_PROBE_STEPS} steps take longer than {limit:.0f} s: it had {len(times)} then"
        return 0.0, replace(result, error=said)
    if result.status not in ("done", "stopped"):
        return 0.0, result
    # The mean, not the median: what is done at every fifth step counts, too.
    seconds = statistics.fmean(times[min(_PROBE_STEPS, len(times)) // 3 :] or [0.0]) / 1000
    if not seconds > 0 or "train/tokens" not in series:
        return 0.0, replace(result, status="failed", error=_UNTIMED)
    steps, tokens = series["train/tokens"][-1]
    return tokens / steps / seconds, result


def _in_time(result: Result, minutes: float, limit: float) -> Result:
    """The result; a failed one where the steps took longer than the budget and what it tolerates.

    The first step, which compiles, is left out, and so are evaluation and saving.
    """
    if result.status == "stopped":
        return replace(result, error=f"it took longer than {limit:.0f} s with its start")
    if result.status != "done":
        return result
    steps = _series(Path(result.run_dir)).get("perf/step_ms", ())
    if not steps:
        return replace(result, status="failed", error=_UNTIMED)
    took = sum(value for _, value in steps[1:]) / 1000
    if took <= 60 * minutes * (1 + TOLERANCE) + SLACK_S:
        return result
    said = (
        f"its steps took {took / 60:.2f} minutes where the budget is {minutes:g}: later ones are "
        "slower than the first, or the machine was busy (then run it again)"
    )
    return replace(result, status="failed", error=said)


def _series(run_dir: Path) -> Series:
    """The curves that a training has logged so far: none where it is just beginning."""
    try:
        return read_series(run_dir / "metrics.jsonl")
    except (OSError, ValueError):  # not there yet, or a line that is just being written
        return {}


def read(path: Path) -> list[Experiment]:
    """The experiments of a `results.tsv`, oldest first; a torn last line is left out.

    Raises:
        DataError: it is another program's, or naming the line that is no experiment.
    """
    return [experiment for experiment, _ in _rows(path)]


def _rows(path: Path) -> list[tuple[Experiment, str]]:
    """Each experiment with its line."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        return []
    header, *lines = text.split("\n")
    if tuple(header.split("\t")) not in (COLUMNS, COLUMNS[:-1]):  # notes came later
        raise DataError(
            f"{path} begins with {header[:60]!r}, which is no header of experiments",
            "move it away, or give another --out",
        )
    *whole, last = lines or [""]
    made = [(_parsed(path, number, line), line) for number, line in enumerate(whole, 2)]
    with contextlib.suppress(DataError):  # torn, or an editor left out the last line break
        made += [(_parsed(path, len(lines) + 1, last), last)]
    return made


def _parsed(path: Path, number: int, line: str) -> Experiment:
    fields = line.split("\t")
    try:
        if len(fields) not in (len(COLUMNS) - 1, len(COLUMNS)):
            raise ValueError(f"it has {len(fields)} fields where {len(COLUMNS)} are")
        return _experiment(dict(zip(COLUMNS, fields, strict=False)))
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}", "mend or remove the line") from None


def _experiment(row: Mapping[str, str]) -> Experiment:
    return Experiment(
        float(row["time"]), row["commit"], row["status"], _number(row["bpb"]),
        _number(row["best"]), int(row["tokens"]), float(row["minutes"]),
        row["description"], row["diff"],
        notes=tuple(filter(None, row.get("notes", "").split("; "))),
    )  # fmt: skip


def _append(path: Path, experiment: Experiment) -> None:
    """Adds a line; those of before stay as they are, but for a torn last one."""
    values = asdict(experiment) | {"notes": "; ".join(experiment.notes)}
    line = "\t".join("" if values[c] is None else str(values[c]) for c in COLUMNS)
    lines = ["\t".join(COLUMNS), *(before for _, before in _rows(path)), line]
    write_atomically(path, "\n".join(lines) + "\n")


def _number(text: str) -> float | None:
    return float(text) if text else None


def _diff(tree: Tree, base: str) -> bytes:
    """The change as a patch, new files included."""
    git = ["git", "-C", tree.code.path]
    subprocess.run([*git, "add", "--all", "--intent-to-add"], check=True, capture_output=True)
    return subprocess.run([*git, *DIFF, base], check=True, capture_output=True).stdout


def as_json(experiment: Experiment) -> str:
    """One line for an agent."""
    return json.dumps(asdict(experiment))

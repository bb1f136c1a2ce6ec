"""`gchat research run`: one experiment of an agent's loop. One budget, one metric, one line.

The working tree is trained for so many minutes and judged by main's evaluation code; its bits per
byte decide whether the change is kept. `program.md` beside this file tells a coding agent the
rules. Each experiment leaves a line in `results.tsv` and its diff.
"""

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
from gchat.research.cells import Cell, Result, data_hash, run_cell
from gchat.research.measure import measure, measure_of
from gchat.research.source_tree import DIFF
from gchat.research.worktrees import WORKING_TREE, Tree, make_tree
from gchat.run.folder import write_atomically
from gchat.run.series import read_series

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
_GRACE = 1.5
"""Times its budget that a training may take, its start included, before it is ended."""


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
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes is {minutes}", "use a number above 0")
    if not margin >= 0:
        raise ConfigError(f"--margin is {margin}", "use bits per byte, 0 or more")
    if "\t" in description or len(description.splitlines()) > 1:
        raise ConfigError("--description has a tab or a line break", "write one plain line")
    with WriterLock(folder / ".gaia.lock", f"an experiment in {folder}"):
        return _run(minutes, arguments, data_dir, seed, folder, judge, margin, description)


def _run(
    minutes: float, arguments: Sequence[str], data_dir: str, seed: int, folder: Path, judge: str,
    margin: float, description: str,
) -> Experiment:  # fmt: skip
    root, began = worktrees.repository(), time.time()
    first = make_tree(root, judge, folder / "code", None)
    tree = make_tree(root, WORKING_TREE, folder / "code", first)
    expected = measure(flatten(to_dict(load(list(arguments), prog="gchat research run"))))
    budget = {"minutes": minutes, "arguments": list(arguments), "seed": seed, "judge": judge}
    _check_budget(folder, budget | {"data": data_hash(data_dir)[:12]})
    before = read(folder / RESULTS)
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
    """
    path = folder / BUDGET
    if not path.exists():
        write_atomically(path, json.dumps(budget) + "\n")
        return
    before = json.loads(path.read_text())
    for name, value in budget.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{name} is {value}, and the experiments in {folder} have {before.get(name)}",
                "give another --out: figures of two budgets do not compare",
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
    digest = data_hash(data_dir)

    def cell(*more: str) -> Cell:
        return Cell("idea", "", seed, (*arguments, *more), tree.code, data_dir, digest)

    limit = 60 * minutes * _GRACE + 120
    probe = run_cell(
        cell(f"--training.steps={_PROBE_STEPS}", "--eval.every-steps=0"),
        place.with_name(f"{place.name}-probe"),
        timeout_s=limit,
    )
    if probe.status != "done":
        return probe
    series = read_series(Path(probe.run_dir) / "metrics.jsonl")
    step_s = statistics.median(v for _, v in series["perf/step_ms"][_PROBE_STEPS // 3 :]) / 1000
    tokens = int(60 * minutes / step_s * probe.tokens / _PROBE_STEPS)
    return run_cell(cell(f"--training.tokens={tokens}"), place, timeout_s=limit)


def read(path: Path) -> list[Experiment]:
    """The experiments of a `results.tsv`, oldest first; a torn last line is left out.

    Raises:
        DataError: naming the line that holds what is no number.
    """
    if not path.exists():
        return []
    made = []
    for number, line in enumerate(path.read_text().split("\n")[1:], 2):
        fields = line.split("\t")
        if len(fields) not in (len(COLUMNS) - 1, len(COLUMNS)):  # notes came later
            continue
        try:
            made.append(_experiment(dict(zip(COLUMNS, fields, strict=False))))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}", "mend or remove the line") from None
    return made


def _experiment(row: Mapping[str, str]) -> Experiment:
    return Experiment(
        float(row["time"]), row["commit"], row["status"], _number(row["bpb"]),
        _number(row["best"]), int(row["tokens"]), float(row["minutes"]),
        row["description"], row["diff"],
        notes=tuple(filter(None, row.get("notes", "").split("; "))),
    )  # fmt: skip


def _append(path: Path, experiment: Experiment) -> None:
    rows = [*read(path), experiment]
    lines = ["\t".join(COLUMNS)]
    for row in rows:
        values = asdict(row) | {"notes": "; ".join(row.notes)}
        lines.append("\t".join("" if values[c] is None else str(values[c]) for c in COLUMNS))
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

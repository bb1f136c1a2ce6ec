"""`gchat compare main my-idea [a+b] [+idea]`: the same training from each, and how they differ.

Every branch trains with the same options, data and seeds, in a worktree of its own. The first one
is the baseline. Compared are final bits per byte at equal tokens; at equal FLOPs and equal time a
branch that costs more or less per token trains again with so many tokens that its whole schedule
spends the same. What each spent in truth stands beside it.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError
from gaia.writer_lock import WriterLock
from gchat.config import load
from gchat.research import spent, worktrees
from gchat.research.cells import Result
from gchat.research.measure import measure_of
from gchat.research.source_tree import Code
from gchat.research.spent import CLOSE, Axis
from gchat.research.statistics import Difference, paired, power
from gchat.research.sweep import Sweep, run_cells
from gchat.research.worktrees import Tree, TreeError


@dataclass(frozen=True)
class Row:
    """One branch on one axis."""

    tree: Tree
    axis: Axis
    results: list[Result]
    against: Difference | None
    """Difference to the first branch; None for itself, or where fewer than two seeds ended."""
    note: str = ""
    share: float | None = None
    """The share that it spent of what the first branch did on its axis; None where unknown."""

    @property
    def label(self) -> str:
        """Name for people: a full stop is easily overlooked."""
        return "working tree" if self.tree.name == worktrees.WORKING_TREE else self.tree.name


@dataclass(frozen=True)
class Comparison:
    """All branches on all axes."""

    rows: list[Row]
    seeds: tuple[int, ...]
    level: float
    notes: list[str]

    @property
    def found(self) -> float:
        """Probability that a difference of two seed deviations would be seen, in any row.

        Only seeds that ended in both branches are pairs.
        """
        pairs = [row.against.pairs for row in self.rows if row.against]
        return power(2.0, min(pairs), self.level) if pairs else 0.0


def most_runs(branches: int, seeds: int, axes: Sequence[Axis]) -> int:
    """Runs that a comparison may take: on an axis beside tokens, all but the baseline's again."""
    others = len(set(axes) - {"tokens"})
    return seeds * (branches + (branches - 1) * others)


def compare(
    names: Sequence[str],
    arguments: Sequence[str],
    *,
    data_dir: str,
    seeds: Sequence[int],
    folder: Path,
    level: float,
    axes: Sequence[Axis] = ("tokens", "flops", "time"),
    allow_different: bool = False,
) -> Comparison:
    """Trains each branch and compares.

    Args:
        names: branches, commits, merges `a+b`, ideas `+idea`, or `.`; the first one judges.
        arguments: options of `gchat train` for all of them, with the length in tokens.
        data_dir: a prepared data set.
        seeds: at least two.
        folder: worktrees, run folders and results go there.
        level: of the intervals.
        axes: what is held equal.
        allow_different: compare although data or evaluation differ, and say so.

    Raises:
        ConfigError: data or evaluation differ between the branches, or only one is left.
        FolderInUse: another comparison is at work there.
        TreeError: the first branch cannot be laid out.
    """
    with WriterLock(folder / ".trees.lock", f"a comparison in {folder}"):
        return _compare(names, arguments, data_dir, seeds, folder, level, axes, allow_different)


def _compare(
    names: Sequence[str], arguments: Sequence[str], data_dir: str, seeds: Sequence[int],
    folder: Path, level: float, axes: Sequence[Axis], allow_different: bool,
) -> Comparison:  # fmt: skip
    root, notes = worktrees.repository(), []
    trees: list[Tree] = []
    for name in names:
        try:
            first = trees[0] if trees else None
            trees.append(worktrees.make_tree(root, name, folder / "code", first))
        except TreeError as error:
            if not trees:
                raise
            notes.append(f"{name} is left out: {error}")
            print(notes[-1], file=sys.stderr, flush=True)  # the table says it hours later
    if len(trees) < 2:
        raise ConfigError(f"nothing is left to compare {names[0]} with", "mend the names above")
    notes += [note for tree in trees for note in tree.notes]
    notes += [f"{tree.name} is {twin}" for tree, twin in _twins(trees)]
    trained = _train(trees, arguments, data_dir, seeds, folder)
    different = _differences(trained)
    if different and not allow_different:
        raise ConfigError(
            f"the branches do not measure the same: {'; '.join(different)}",
            "make them agree, or add --allow-different",
        )
    notes += [f"NOT THE SAME MEASURE: {line}" for line in different]
    rows = [_row(tree, "tokens", trained[tree.name], trained[names[0]], level) for tree in trees]
    others: list[Axis] = [axis for axis in axes if axis != "tokens"]
    for axis in others:
        rows += _again(trees, trained, axis, arguments, data_dir, seeds, folder, level)
    return Comparison(rows, tuple(seeds), level, notes)


def _twins(trees: Sequence[Tree]) -> list[tuple[Tree, str]]:
    """Trees that hold what an earlier one holds, with a sentence's end that says so."""
    named: dict[tuple[Code, tuple[str, ...]], str] = {}
    twins = []
    for tree in trees:
        same = named.setdefault((replace(tree.code, path=""), tree.options), tree.name)
        if same != tree.name:
            twins.append((tree, f"{same}, unchanged: their trainings are one and the same"))
    return twins


def _train(
    trees: Sequence[Tree],
    arguments: Sequence[str],
    data_dir: str,
    seeds: Sequence[int],
    folder: Path,
    own: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, list[Result]]:
    """Results of every tree, seed by seed."""
    options = {tree.name: tree.options + (own or {}).get(tree.name, ()) for tree in trees}
    sweep = Sweep(tuple(arguments), options, {"": ()}, tuple(seeds))
    cells = sweep.cells({tree.name: tree.code for tree in trees}, data_dir)
    grouped: dict[str, list[Result]] = {tree.name: [] for tree in trees}
    # Two names of one commit share their cells, so results are told apart by their order.
    for cell, result in zip(cells, run_cells(cells, folder), strict=True):
        grouped[cell.variant].append(result)
    return grouped


def _row(
    tree: Tree, axis: Axis, results: list[Result], base: list[Result], level: float, note: str = ""
) -> Row:
    if results is base:
        return Row(tree, axis, results, None, note)
    ended = [
        (one.bpb, other.bpb)
        for one, other in spent.pairs(base, results)
        if one.bpb is not None and other.bpb is not None
    ]
    against = None
    if len(ended) > 1:
        against = paired([one for one, _ in ended], [other for _, other in ended], level)
    share = spent.share(base, results, axis)
    elsewhere = spent.said_elsewhere(base, results)
    unequal = ""
    if share is not None and abs(share - 1) > CLOSE[axis]:
        unequal = f"NOT EQUAL {axis}: {share:.2f} of the first one's"
    elif share is None and elsewhere and axis == "time":
        unequal = "whether the time was equal cannot be said"
    return Row(
        tree, axis, results, against, ", ".join(filter(None, (note, unequal, elsewhere))), share
    )


def _again(
    trees: Sequence[Tree],
    trained: Mapping[str, list[Result]],
    axis: Axis,
    arguments: Sequence[str],
    data_dir: str,
    seeds: Sequence[int],
    folder: Path,
    level: float,
) -> list[Row]:
    """The rows of an axis on which the branches' tokens differ."""
    base = trained[trees[0].name]
    tokens = _tokens(arguments)
    rows = [Row(trees[0], axis, base, None)]
    for tree in trees[1:]:
        here = trained[tree.name]
        cost = spent.share(base, here, axis, per_token=True)
        if cost is None:
            why = spent.why_unknown(base, here, axis)
            rows.append(Row(tree, axis, [], None, f"not compared: {why}"))
            continue
        if abs(cost - 1) <= CLOSE[axis]:
            note = f"costs the same per token ({cost:.3f})"
            rows.append(_row(tree, axis, here, base, level, note))
            continue
        longer = (f"--training.tokens={round(tokens / cost)}",)
        results = _train([tree], arguments, data_dir, seeds, folder, {tree.name: longer})
        note = f"{cost:.2f} of the cost per token, so {longer[0]}"
        rows.append(_row(tree, axis, results[tree.name], base, level, note))
    return rows


def _tokens(arguments: Sequence[str]) -> int:
    tokens = load(list(arguments), prog="gchat compare").training.tokens
    if tokens is None:
        raise ConfigError("training.tokens is not set", "give --training.tokens N")
    return tokens


def _differences(trained: Mapping[str, list[Result]]) -> list[str]:
    """Sentences about what makes the figures of two branches mean different things."""
    facts: dict[str, dict[str, Any]] = {}
    for name, results in trained.items():
        done = next((r for r in results if r.status == "done"), None)
        if done is None:
            continue
        facts[name] = done.measure or measure_of(Path(done.run_dir))
    (first, ours), *others = list(facts.items()) or [("", {})]
    return [
        f"{field} is {ours.get(field)} in {first} and {theirs.get(field)} in {name}"
        for name, theirs in others
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field)
    ]


def shown(comparison: Comparison) -> list[str]:
    """The table, line by line, for people."""
    width = max(len(row.label) for row in comparison.rows)
    lines = []
    for axis in dict.fromkeys(row.axis for row in comparison.rows):
        lines.append(f"at equal {axis}:")
        for row in (row for row in comparison.rows if row.axis == axis):
            lines.append(f"  {row.label:{width}} {_line(row)}")
    return [*lines, *comparison.notes, *_power_lines(comparison)]


def _power_lines(comparison: Comparison) -> list[str]:
    """A line on the differences that can be found, for each number of seeds that ended."""
    whose: dict[int, dict[str, None]] = {}
    for row in comparison.rows:
        if row.against:
            whose.setdefault(row.against.pairs, {})[row.label] = None
    lines = []
    for pairs, labels in whose.items():
        of = f" of {', '.join(labels)}" if len(whose) > 1 else ""
        lines.append(
            f"{pairs} pairs of seeds{of}: a difference of two seed deviations would be found with "
            f"probability {power(2.0, pairs, comparison.level):.2f}"
        )
    return lines


def _line(row: Row) -> str:
    values = [r.bpb for r in row.results if r.status == "done" and r.bpb is not None]
    parts = [f"{statistics.fmean(values):.4f} bits per byte" if values else "no result"]
    if len(values) > 1:
        parts.append(f"seed deviation {statistics.stdev(values):.4f}")
    if values:
        tokens, flops, seconds = (spent.middle(row.results, a) for a in ("tokens", "flops", "time"))
        parts.append(f"{tokens:,.0f} tokens, {flops:.3g} FLOPs, {seconds:,.1f} s")
    if row.against:
        better = "better" if row.against.mean < 0 else "worse"
        parts.append(f"{row.against}; {better if row.against.differs else 'no difference found'}")
    files, added, removed = row.tree.size
    if files:
        parts.append(f"{files} file{'s' * (files > 1)}, +{added} -{removed}")
    parts += [row.note] * bool(row.note)
    parts += [f"seed {r.seed} {r.status}: {r.error}" for r in row.results if r.status != "done"]
    return ", ".join(parts)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain types."""
    return {
        "level": comparison.level,
        "seeds": list(comparison.seeds),
        "power_at_two_deviations": round(comparison.found, 4),
        "notes": comparison.notes,
        "rows": [
            {
                "branch": row.tree.name,
                "commit": row.tree.code.said,
                "axis": row.axis,
                "bpb": [r.bpb for r in row.results],
                "status": [r.status for r in row.results],
                "tokens": [r.tokens for r in row.results],
                "flops": [r.flops for r in row.results],
                "seconds": [r.seconds for r in row.results],
                "start_seconds": [r.start_seconds for r in row.results],
                "share_of_first": row.share,
                "difference": row.against and {
                    "mean": row.against.mean,
                    "low": row.against.low,
                    "high": row.against.high,
                    "pairs": row.against.pairs,
                    "degrees_of_freedom": row.against.degrees,
                    "power_at_two_deviations": round(
                        power(2.0, row.against.pairs, comparison.level), 4
                    ),
                    "differs": row.against.differs,
                },
                "diff": dict(zip(("files", "added", "removed"), row.tree.size, strict=True)),
                "note": row.note,
            }
            for row in comparison.rows
        ],
    }  # fmt: skip

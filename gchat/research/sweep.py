"""Variants x sizes x seeds: each cell trained once.

Run again, it trains what is missing or failed. A variant that diverges is kept and marked; one
that does not start is reported, and the rest goes on.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gaia.data.manifest import MANIFEST
from gaia.errors import ConfigError
from gaia.storage.files import exists, is_remote, join
from gaia.writer_lock import WriterLock
from gchat.config import load
from gchat.evals.progress_line import clock
from gchat.research import cells
from gchat.research.base_run import start_hash
from gchat.research.cells import Cell, Result
from gchat.research.folder_name import folder_name
from gchat.research.source_tree import Code, code_at

if TYPE_CHECKING:
    from gchat.speedrun_plan import Plan

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class EarlyStop:
    """Ends a cell that is far behind the first variant of its size and seed.

    Attributes:
        at: share of the first variant's tokens from which cells are judged.
        behind: bits per byte by which a cell may be worse there.
    """

    at: float
    behind: float

    def __post_init__(self) -> None:
        for name in ("at", "behind"):
            if type(getattr(self, name)) not in (int, float):
                raise ConfigError(f"early_stop.{name} is {getattr(self, name)!r}", "use a number")
        if not 0 < self.at < 1:
            raise ConfigError(f"early_stop.at is {self.at}", "use a share between 0 and 1")
        if not self.behind > 0:
            raise ConfigError(f"early_stop.behind is {self.behind}", "use bits per byte above 0")

    def ends(self, so_far: Result, reference: Result | None) -> bool:
        """Tells whether a training is to be stopped."""
        if reference is None or not so_far.curve:
            return False
        tokens, value = so_far.curve[-1][0], so_far.curve[-1][3]
        if tokens < self.at * reference.tokens:
            return False
        then = [point for point in reference.curve if point[0] <= tokens]
        return bool(then) and value > then[-1][3] + self.behind


@dataclass(frozen=True)
class Sweep:
    """The options of each variant and size, over a common base."""

    arguments: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    early_stop: EarlyStop | None = None

    def cells(self, codes: Mapping[str, Code] | Code, data_dir: str | None) -> list[Cell]:
        """The cells, seed by seed, so that every variant has its first result early.

        Args:
            codes: source tree of each variant, or of all.
            data_dir: a prepared data set; None where it is still to be: the cells of a dry run.
        """
        preset = cells.preset_hash(self.arguments)
        words = {
            (size, variant): (*self.arguments, *of_size, *own)
            for size, of_size in self.sizes.items()
            for variant, own in self.variants.items()
        }
        starts = {place: start_hash(arguments) for place, arguments in words.items()}
        digests = {
            place: cells.data_hash(data_dir, arguments) if data_dir is not None else ""
            for place, arguments in words.items()
        }
        return [
            Cell(
                variant,
                size,
                seed,
                arguments,
                codes if isinstance(codes, Code) else codes[variant],
                data_dir or "",
                digests[size, variant],
                preset,
                starts[size, variant],
            )
            for seed in self.seeds
            for (size, variant), arguments in words.items()
        ]

    def check(self) -> None:
        """Raises ConfigError where the options of a variant cannot work together."""
        for variant, own in self.variants.items():
            for size, of_size in self.sizes.items():
                try:
                    load([*self.arguments, *of_size, *own], prog="gchat sweep")
                except ConfigError as error:
                    where = f"variant {variant}" + (f", size {size}" if size else "")
                    raise ConfigError(f"{where}: {error.problem}", error.remedy) from None


def run_cells(
    wanted: Iterable[Cell],
    folder: Path,
    *,
    early_stop: EarlyStop | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> list[Result]:
    """Trains the cells that have no result yet; returns those of all, in their order.

    The folder holds `results.jsonl`, one line per finished cell, and a run folder per cell.

    Raises:
        FolderInUse: another process trains there.
        Changed: the code, the preset or the base run of a cell is another now.
    """
    wanted = list(wanted)
    path = folder / RESULTS
    with WriterLock(folder / ".gaia.lock", f"a sweep in {folder}"):
        results = cells.read_results(path)
        each = {cell.id: cell for cell in reversed(wanted)}  # two variants may be one and the same
        once = [cell for cell in wanted if each[cell.id] is cell]
        open_cells = [cell for cell in once if _open(cell, results, wanted, early_stop)]
        if len(open_cells) < len(once):
            say(f"{len(once) - len(open_cells)} of {len(once)} cells are there already")
        seconds: list[float] = []
        for number, cell in enumerate(open_cells, 1):
            _check_unchanged(cell)
            ahead = _eta(seconds, len(open_cells) - number + 1)
            say(f"cell {number}/{len(open_cells)} {cell.name}{ahead}")
            began = time.monotonic()
            first = _reference(results.values(), cell, wanted)
            stop = early_stop if first is not None and first.id != cell.id else None
            watch = _Watch(cell, stop, first, say, sys.stderr.isatty())
            result = _trained(cell, folder / "cells" / folder_name(cell.name), watch)
            seconds.append(time.monotonic() - began)
            results[cell.id] = result
            cells.append_result(path, result)
            say(f"  {_outcome(result)} in {clock(seconds[-1])}")
    # A result keeps the name that it was first trained under; the file may have another now.
    return [replace(results[c.id], variant=c.variant, size=c.size) for c in wanted]


def _open(
    cell: Cell, results: Mapping[str, Result], wanted: Sequence[Cell], stop: EarlyStop | None
) -> bool:
    """Tells whether a cell is still to be trained: nothing of it is there, it failed, or it was
    stopped where `stop` would not stop it now."""
    result = results.get(cell.id)
    if result is None or result.status in cells.REDONE:
        return True
    if result.status != "stopped":
        return False
    return stop is None or not stop.ends(result, _reference(results.values(), cell, wanted))


class Changed(ConfigError):
    """A cell would be recorded under an identity that is not what was trained."""


def _trained(cell: Cell, place: Path, watch: "_Watch") -> Result:
    """Trains a cell; one whose code was edited while it started leaves no checkpoint of that."""
    kept = set(place.glob("checkpoints/*"))
    try:
        result = cells.run_cell(cell, place, watch=watch)
        if not watch.steps_seen:
            _check_unchanged(cell)
    except Changed:
        for made in set(place.glob("checkpoints/*")) - kept if kept else {place}:
            shutil.rmtree(made, ignore_errors=True)
        raise
    return result


def _check_unchanged(cell: Cell) -> None:
    """Raises Changed where the cell trains another code, preset, base run or data than its identity
    says.

    Hours may lie between the start of a sweep and that of a cell.
    """
    changed = cell.code.path if code_at(cell.code.path) != cell.code else ""
    if cells.preset_hash(cell.arguments) != cell.preset_hash:
        changed = cell.arguments[0]
    if start_hash(cell.arguments) != cell.start_hash:
        changed = "the run of training.init_from"
    if cells.data_hash(cell.data_dir, cell.arguments) != cell.data_hash:
        changed = f"the data set {cell.data_dir} or one of data.mixture"
    if changed:
        raise Changed(
            f"{changed} has changed since this began",
            "restore it, or run it again: finished cells of what it was are kept",
        )


class _Watch:
    """Shows a training's progress, and stops one that is too far behind.

    At its first step a training has read all its code, which is compared with its identity then:
    what is edited later changes nothing of it.
    """

    def __init__(
        self, cell: Cell, stop: EarlyStop | None, first: Result | None,
        say: Callable[[str], None], live: bool,
    ) -> None:  # fmt: skip
        self._cell, self._stop, self._first, self._say, self._live = cell, stop, first, say, live
        self._shown, self._tokens = time.monotonic(), -1
        self.steps_seen = False

    def __call__(self, so_far: Result) -> bool:
        """Tells whether to stop.

        Raises:
            Changed: the code was edited while the training started.
        """
        before, self._tokens = self._tokens, so_far.tokens  # a resumed log is cut first
        if not self.steps_seen and 0 <= before < so_far.tokens:
            _check_unchanged(self._cell)
            self.steps_seen = True
        if self._live and so_far.curve and time.monotonic() - self._shown > 10:
            self._shown = time.monotonic()
            bpb = so_far.curve[-1][3]
            self._say(f"  {so_far.tokens:,} tokens in {clock(so_far.seconds)}, bpb {bpb:.4f}")
        return self._stop is not None and self._stop.ends(so_far, self._first)


def _reference(results: Iterable[Result], cell: Cell, wanted: Sequence[Cell]) -> Result | None:
    """The finished first variant of the same size and seed."""
    first = next((c for c in wanted if (c.size, c.seed) == (cell.size, cell.seed)), None)
    return next((r for r in results if first and r.id == first.id and r.status == "done"), None)


def _eta(seconds: Sequence[float], left: int) -> str:
    return f" (about {clock(left * sum(seconds) / len(seconds))} to go)" if seconds else ""


def _outcome(result: Result) -> str:
    if result.status == "done":
        return f"{result.bpb:.4f} bits per byte, {result.tokens:,} tokens"
    said = f" ({result.error})" if result.error else ""
    at = f" at {result.bpb:.4f}" if result.bpb is not None else ""
    return f"{result.status}{at}{said}"


def table(results: Sequence[Result], say: Callable[[str], None] = print) -> None:
    """Prints mean, spread and seeds of each variant and size, and names what did not finish."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result.size, result.variant), []).append(result)
    width = max(len(variant) for _, variant in rows)
    say(f"{'size':8} {'variant':{width}} {'bpb':>8} {'sd':>8} seeds")
    for (size, variant), group in rows.items():
        values = [r.bpb for r in group if r.status == "done" and r.bpb is not None]
        mean = sum(values) / len(values) if values else float("nan")
        spread = (
            (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
            if len(values) > 1
            else float("nan")
        )
        other = [f"seed {r.seed} {r.status}" for r in group if r.status != "done"]
        rest = f"  ({', '.join(other)})" if other else ""
        say(f"{size:8} {variant:{width}} {mean:8.4f} {spread:8.4f} {len(values)}{rest}")


def as_json(results: Sequence[Result]) -> str:
    """All results on one line."""
    from dataclasses import asdict

    return json.dumps([asdict(result) for result in results])


def data_of(preset_arguments: Sequence[str], named: str | None) -> str:
    """A data set that was named, or the preset's own corpus, prepared once.

    A local folder is given as a whole path: trainings have another working directory.

    Raises:
        DataError: the named folder holds none.
    """
    if named is not None:
        cells.data_hash(named)
        return _whole(named)
    plan = _plan_of_data(preset_arguments)
    plan.prepare_data()
    return _whole(plan.config.data.place)


def found_data(preset_arguments: Sequence[str], named: str | None) -> str | None:
    """The same where it is there; None where it is still to be prepared. Writes nothing.

    Raises:
        DataError: the named folder holds none.
    """
    if named is not None:
        return data_of(preset_arguments, named)
    plan = _plan_of_data(preset_arguments)
    place = plan.config.data.dir or str(plan.data_dir())
    return _whole(place) if exists(join(place, MANIFEST)) else None


def _plan_of_data(preset_arguments: Sequence[str]) -> "Plan":
    """A plan that knows which corpus a preset trains on. That needs no device."""
    from gaia import runtime
    from gchat.speedrun_plan import Plan

    runtime.stay_on_host()  # the trainings to come need the accelerator
    config = load(list(preset_arguments), prog="gchat sweep")
    host = runtime.Machine("cpu", "cpu", 1, 0, 1)
    return Plan(config, host, 1.0, time.monotonic() + 1e9, strict=False)


def _whole(place: str) -> str:
    return place if is_remote(place) else str(Path(place).resolve())

"""The verbs of research: `gchat sweep`, `compare`, `ladder`, `research run`, `research ideas`."""

import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gaia.config import parse
from gaia.errors import ConfigError
from gchat.config import load, typed_options
from gchat.research import (
    cells,
    driver,
    experiment,
    ideas,
    length,
    picture,
    rented,
    source_tree,
    worktrees,
)
from gchat.research import compare as comparing
from gchat.research import sweep as sweeping
from gchat.research.options import training_words
from gchat.research.statistics import LEVEL
from gchat.run.folder import write_atomically
from gchat.run_length import typed_lengths

MINUTES = 10.0


@dataclass(frozen=True)
class Sweep:
    """Train variants x sizes x seeds, each once; run again, only what is missing.

    Examples:
        gchat sweep rates.yaml --dry-run
        gchat sweep rates.yaml
    """

    file: Annotated[str, tyro.conf.Positional]
    """YAML file of the sweep (see docs/research.md)."""
    out: str | None = None
    """Folder of results and runs; default: runs/sweeps/NAME of the file."""
    dry_run: bool = False
    """Print the cells; train nothing."""
    json: bool = False
    """Print the results as one JSON list."""


@dataclass(frozen=True)
class Compare:
    """Train branches with the same data, options and seeds, and say how they differ.

    Examples:
        gchat compare main . --minutes 8                the working tree as it is
        gchat compare main my-idea other my-idea+other  branches, and their merge
        gchat compare main +relu2 +engram --tokens 655360
        gchat compare main my-idea --on v6e-1 --budget 10USD --dry-run
    """

    branches: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Branches, commits, merges (a+b) or ideas (+NAME of gchat research ideas); `.` is the working
    tree. The first one is the baseline."""
    preset: str = "cpu"
    """Preset of every training."""
    minutes: float | None = None
    """Budget of the whole comparison, which decides depth and tokens; default: 10. Room is left for
    all axes, so --axes tokens buys longer runs."""
    tokens: int | None = None
    """Training tokens of each run, instead of --minutes."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds that every branch trains with."""
    level: float = LEVEL
    """Confidence level of the intervals."""
    axes: tuple[comparing.Axis, ...] = ("tokens", "flops", "time")
    """Quantities to hold equal, one table each."""
    set: tuple[str, ...] = ()
    """More options of every training, as FIELD=VALUE."""
    data: str | None = None
    """Prepared data set; default: the preset's corpus, prepared once."""
    out: str | None = None
    """Folder of worktrees, runs and results; default: runs/compare/BRANCHES."""
    allow_different: bool = False
    """Compare although data, tokenizer or evaluation differ; the report says so."""
    on: str | None = None
    """Instance type to rent for it through gml, or words of gml run: v6e-1, "v6e-1 --spot"."""
    budget: str | None = None
    """With --on, the most it may cost, e.g. 10USD: lifetime and price of the machine obey it."""
    dry_run: bool = False
    """Print the plan; train nothing."""
    json: bool = False
    """Print the comparison as one JSON object."""

    def check(self) -> None:
        """Raises ConfigError for values that cannot work, and for two lengths at once."""
        if len(self.branches) < 2 or len(set(self.branches)) != len(self.branches):
            raise ConfigError(
                f"the branches are {' '.join(self.branches) or 'missing'}",
                "name two different ones or more, the baseline first",
            )
        if len(set(self.seeds)) < 2 or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"--seeds are {list(self.seeds)}", "give two different ones or more")
        if self.minutes is not None and self.tokens is not None and self.on is None:
            raise ConfigError("--minutes and --tokens are given", "give one of them")
        if self.budget is not None and self.on is None:
            raise ConfigError(f"--budget {self.budget} is given without --on", "name a machine")
        if self.on is not None and Path(self.preset).is_file():
            raise ConfigError(
                f"--preset {self.preset} is a file of this machine, and --on trains on another",
                "commit it in gchat/configs and give its name",
            )
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"--minutes is {self.minutes}", "use a number above 0")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"--tokens is {self.tokens}", "use a number above 0")
        if not 0 < self.level < 1:
            raise ConfigError(f"--level is {self.level}", "use a share between 0 and 1")


@dataclass(frozen=True)
class Research:
    """Train the working tree for a fixed time, judged by main: one line in results.tsv.

    Examples:
        gchat research run --minutes 5 --description "relu squared" --json
    """

    minutes: float = 5.0
    """Minutes of training steps."""
    description: str = ""
    """Idea, in one line."""
    preset: str = "cpu"
    """Preset of every experiment."""
    judge: str = driver.JUDGE
    """Branch whose code runs the experiment and measures it."""
    margin: float = 0.002
    """Bits per byte by which the best so far must be beaten to be kept."""
    seed: int = 1337
    """Seed of every experiment."""
    set: tuple[str, ...] = ()
    """More options of every training, as FIELD=VALUE."""
    data: str | None = None
    """Prepared data set; default: the preset's corpus, prepared once."""
    out: str = "runs/research"
    """Folder of results.tsv, diffs and runs."""
    json: bool = False
    """Print the line as JSON."""


@dataclass(frozen=True)
class Ideas:
    """List the ideas that ship as patches, for `gchat compare main +NAME`."""

    json: bool = False
    """Print them as one JSON list."""


def ideas_main(args: list[str]) -> None:
    """`gchat research ideas`."""
    shown = parse(Ideas, args, prog="gchat research ideas", description=inspect.getdoc(Ideas))
    listed = [(ideas.read(name), ideas.title(name)) for name in ideas.names()]
    if shown.json:
        rows = [
            {"name": idea.name, "title": title, "options": idea.options,
             "patches": [str(patch) for patch in idea.patches],
             "not_exportable": idea.not_exportable}
            for idea, title in listed
        ]  # fmt: skip
        print(json.dumps(rows))
        return
    width = max(len(idea.name) for idea, _ in listed) + 1
    for idea, title in listed:
        print(f"{'+' + idea.name:{width}}  {title}")


def research_main(args: list[str]) -> None:
    """`gchat research run`."""
    options = parse(Research, args, prog="gchat research run", description=inspect.getdoc(Research))
    arguments = training_words(options.preset, options.set)
    load(arguments, prog="gchat research run")
    if given := typed_lengths(typed_options(arguments[1:])):
        remedy = "use --minutes, which decides the length"
        raise ConfigError(f"--set training.{given[0]} is given", remedy)
    done = experiment.run(
        minutes=options.minutes,
        arguments=arguments,
        data_dir=sweeping.data_of(arguments, options.data),
        seed=options.seed,
        folder=Path(options.out).resolve(),
        judge=options.judge,
        margin=options.margin,
        description=options.description,
    )
    if options.json:
        print(experiment.as_json(done))
    else:
        value = f"{done.bpb:.4f} bits per byte" if done.bpb is not None else done.error
        best = f", best before {done.best:.4f}" if done.best is not None else ""
        print(f"{done.status}: {value}{best}; rules for agents: {experiment.PROGRAM}")
        print(*done.notes, sep="\n", end="\n" if done.notes else "")


def sweep_main(args: list[str]) -> None:
    """`gchat sweep`."""
    options = parse(Sweep, args, prog="gchat sweep", description=inspect.getdoc(Sweep))
    path = Path(options.file)
    sweep, data = sweeping.read_sweep(path)
    folder = Path(options.out or f"runs/sweeps/{path.stem}").resolve()
    data_dir = sweeping.data_of(sweep.arguments, data)
    wanted = sweep.cells(source_tree.code_at(worktrees.repository()), data_dir)
    if options.dry_run:
        for cell in wanted:
            print(f"{cell.name}: {' '.join(cell.arguments)} --training.seed {cell.seed}")
        return
    results = sweeping.run_cells(wanted, folder, early_stop=sweep.early_stop)
    groups = {f"{r.variant} {r.size}".strip(): [] for r in results}
    for result in results:
        groups[f"{result.variant} {result.size}".strip()].append(result)
    picture.curves(groups, folder / "curves.png", path.stem)
    if options.json:
        print(sweeping.as_json(results))
    else:
        sweeping.table(results)
        print(f"{folder}/{sweeping.RESULTS}, {folder}/curves.png")


def compare_main(args: list[str]) -> None:
    """`gchat compare`."""
    options = parse(Compare, args, prog="gchat compare", description=inspect.getdoc(Compare))
    options.check()
    arguments = training_words(options.preset, options.set)
    load(arguments, prog="gchat compare")  # a misspelt field is named before anything is done
    named = "-vs-".join(worktrees.folder_name(name) for name in options.branches)
    folder = Path(options.out or f"runs/compare/{named}").resolve()
    if options.on is not None:
        _rented(options, folder)
        return
    if options.tokens is not None:
        arguments.append(f"--training.tokens={options.tokens}")
    else:
        names, seeds, kept = options.branches, options.seeds, folder / "length.json"
        runs = comparing.most_runs(len(names), len(seeds), options.axes)
        minutes = options.minutes or MINUTES
        arguments += length.chosen(arguments, minutes, runs, kept, dry_run=options.dry_run)
    plan = f"each of {len(options.branches) * len(options.seeds)} runs: {' '.join(arguments)}"
    print(plan, file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.dry_run:
        if options.data is not None:
            cells.data_hash(options.data)
        for name in options.branches:
            worktrees.check_name(worktrees.repository(), name)
        return
    data_dir = sweeping.data_of(arguments, options.data)
    arguments += length.evaluations(arguments, data_dir)
    result = comparing.compare(
        options.branches,
        arguments,
        data_dir=data_dir,
        seeds=options.seeds,
        folder=folder,
        level=options.level,
        axes=options.axes,
        allow_different=options.allow_different,
    )
    lines, facts = comparing.shown(result), comparing.as_dict(result)
    groups = {row.label: row.results for row in result.rows if row.axis == "tokens"}
    picture.curves(groups, folder / "curves.png", named, options.axes, against=next(iter(groups)))
    picture.page(folder / "report.html", named, lines, folder / "curves.png", facts)
    write_atomically(folder / "comparison.json", json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts) if options.json else "\n".join(lines))
    if not options.json:
        print(f"picture: {folder / 'curves.png'}, page: {folder / 'report.html'}")


def _rented(options: Compare, folder: Path) -> None:
    """The comparison on a rented machine: the same options, but for the machine and folders."""
    assert options.on is not None
    spent = rented.rental(options.on, options.budget, options.minutes)
    words = ["--preset", options.preset, "--level", str(options.level)]
    words += ["--seeds", *map(str, options.seeds), "--axes", *options.axes]
    lasting = ("--tokens", options.tokens) if options.tokens else ("--minutes", spent.minutes)
    words += map(str, lasting)
    words += ["--set", *options.set] if options.set else []
    words += ["--allow-different"] * options.allow_different
    print(
        f"on {options.on}: at most {spent.lifetime_minutes} minutes at ${spent.max_price:.2f} an "
        f"hour, together at most ${spent.budget:g}",
        file=sys.stderr if options.json else sys.stdout,
    )
    rented.check(
        rented.compare_on(
            spent, options.branches, words, folder, data=options.data, dry_run=options.dry_run
        )
    )
    home = rented.of_machine(folder, spent)
    facts = home / "comparison.json"
    if facts.exists():
        print(facts.read_text() if options.json else f"picture: {home / 'curves.png'}")

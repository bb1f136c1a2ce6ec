"""The verbs of research: `gchat sweep`, `compare`, `ladder`, `research run`, `research ideas`."""

import inspect
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gaia.config import parse
from gaia.errors import ConfigError
from gaia.runtime import stay_on_host
from gchat.config import load
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
from gchat.research.folder_name import folder_name
from gchat.research.options import (
    OF_CORPUS,
    check_seeds,
    field_of,
    refuse_local,
    training_words,
)
from gchat.research.sent_clone import FACTS
from gchat.research.statistics import LEVEL
from gchat.research.sweep_file import read_sweep
from gchat.run.folder import write_atomically
from gchat.run_length import LENGTHS

MINUTES = 10.0
_OF_COMPARE = {f"training.{name}": "--tokens or --minutes" for name in LENGTHS}
_OF_RUN = {f"training.{name}": "--minutes, which decides the length" for name in LENGTHS}
"""Fields that options of `compare` and of `research run` decide."""


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
    """Print the cells; train and prepare nothing."""
    json: bool = False
    """Print the results, or with --dry-run the cells, as one JSON list."""


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
    """More options of every training, as FIELD=VALUE; each --set adds to the ones before."""
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
    """Print the comparison, or with --dry-run its plan, as one JSON object."""

    def check(self) -> None:
        """Raises ConfigError for values that cannot work, and for two lengths at once."""
        if len(self.branches) < 2 or len(set(self.branches)) != len(self.branches):
            raise ConfigError(
                f"the branches are {' '.join(self.branches) or 'missing'}",
                "name two different ones or more, the baseline first",
            )
        if not all(name.strip() for name in self.branches):  # an unset variable of a shell
            raise ConfigError(f"the branches are {list(self.branches)}", "leave no name empty")
        check_seeds(self.seeds, "--seeds", least=2)
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ConfigError(f"--axes are {list(self.axes)}", "give one or more, each once")
        if self.minutes is not None and self.tokens is not None and self.on is None:
            raise ConfigError("--minutes and --tokens are given", "give one of them")
        if self.budget is not None and self.on is None:
            raise ConfigError(f"--budget {self.budget} is given without --on", "name a machine")
        if self.on is not None:
            refuse_local(self.set)
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
    """More options of every training, as FIELD=VALUE; each --set adds to the ones before."""
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
             "patches": [str(patch) for patch in idea.patches]}
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
    stay_on_host()  # a parent of trainings that held the accelerator would leave them none
    arguments = training_words(
        options.preset, options.set, _OF_RUN | (OF_CORPUS if options.data else {})
    )
    load(arguments, prog="gchat research run")
    experiment.check(options.minutes, options.margin, options.seed, options.description)
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
    stay_on_host()
    path = Path(options.file)
    sweep, data = read_sweep(path)
    folder = Path(options.out or f"runs/sweeps/{path.stem}").resolve()
    code = source_tree.code_at(worktrees.repository())
    if options.dry_run:
        data_dir = sweeping.found_data(sweep.arguments, data)
        _show_cells(sweep.cells(code, data_dir), data_dir is not None, options.json)
        return
    wanted = sweep.cells(code, sweeping.data_of(sweep.arguments, data))
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


def _show_cells(wanted: Sequence[cells.Cell], identified: bool, as_json: bool) -> None:
    """The cells of a dry run; their identities hold the data, which may still be to prepare."""
    if not identified:
        print("the data set is prepared by the first run, and identities follow", file=sys.stderr)
    names = [
        cell.name
        if identified
        else "-".join(filter(None, (cell.variant, cell.size, f"s{cell.seed}")))
        for cell in wanted
    ]
    if as_json:
        rows = [
            {"id": cell.id if identified else None, "name": name, "variant": cell.variant,
             "size": cell.size, "seed": cell.seed, "arguments": list(cell.arguments)}
            for cell, name in zip(wanted, names, strict=True)
        ]  # fmt: skip
        print(json.dumps(rows))
        return
    for cell, name in zip(wanted, names, strict=True):
        print(f"{name}: {' '.join(cell.arguments)} --training.seed {cell.seed}")


def _check_ideas(names: Sequence[str], changed: Sequence[str]) -> None:
    """Says where an idea sets a field of --set, too: there the idea's value counts.

    Raises:
        ConfigError: that is so in every branch, or an idea comes twice in one.
        TreeError: the first branch is unknown.
    """
    root, fields = worktrees.repository(), [field_of(word) for word in changed]
    worktrees.check_name(root, names[0])  # without a baseline there is no comparison
    by_field: dict[str, list[str]] = {field: [] for field in fields}
    for name in names:
        with suppress(worktrees.TreeError):  # an unknown name is left out later, and that is said
            named = worktrees.check_name(root, name, names[0])
            own = {field_of(option) for idea in named for option in idea.options}
            for field in own & {*fields}:
                by_field[field].append(name)
    for field, setting in by_field.items():
        if len(setting) == len(names):
            raise ConfigError(f"--set {field} is given, and each branch sets it", "leave it out")
        if setting:
            who = " and ".join(setting)
            print(f"--set {field} counts for the others: {who} sets it itself", file=sys.stderr)


def compare_main(args: list[str]) -> None:
    """`gchat compare`."""
    options = parse(Compare, args, prog="gchat compare", description=inspect.getdoc(Compare))
    options.check()
    stay_on_host()
    arguments = training_words(
        options.preset, options.set, _OF_COMPARE | (OF_CORPUS if options.data else {})
    )
    load(arguments, prog="gchat compare")  # a misspelt field is named before anything is done
    _check_ideas(options.branches, options.set)
    named = folder_name("-vs-".join(options.branches))
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
        _check_plan(options, arguments)
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
    first, *others = options.branches
    title = " against ".join((first, others[0] if len(others) == 1 else f"{len(others)} others"))
    picture.curves(groups, folder / "curves.png", title, options.axes, against=next(iter(groups)))
    picture.page(folder / "report.html", title, lines, folder / "curves.png", facts)
    write_atomically(folder / "comparison.json", json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts) if options.json else "\n".join(lines))
    if not options.json:
        print(f"picture: {folder / 'curves.png'}, page: {folder / 'report.html'}")


def _check_plan(options: Compare, arguments: Sequence[str]) -> None:
    """Raises GaiaError for what a dry run can find wrong; else prints the plan as JSON if asked."""
    if options.data is not None:
        cells.data_hash(options.data)
    for name in options.branches:
        worktrees.check_name(worktrees.repository(), name, options.branches[0])
    if options.json:
        branches, seeds = list(options.branches), list(options.seeds)
        facts = {"branches": branches, "seeds": seeds, "axes": list(options.axes)}
        print(json.dumps(facts | {"arguments": list(arguments)}))


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
        flush=True,
    )
    home = rented.compare_on(
        spent, options.branches, words, folder, data=options.data, dry_run=options.dry_run,
        log_to_stderr=options.json,
    )  # fmt: skip
    if home is not None:
        facts = (home / FACTS).read_text()
        print(facts if options.json else f"picture: {home / 'curves.png'}")

"""`gchat ladder`: trains rungs, or reads points of a table, and shows the law of their losses."""

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gaia.config import parse
from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError, GaiaError
from gaia.runtime import stay_on_host
from gaia.storage.files import make_folder
from gchat.config import load, typed_options
from gchat.research import ladder, scaling, source_tree, worktrees
from gchat.research import sweep as sweeping
from gchat.research.cells import Result
from gchat.research.options import OF_CORPUS, training_words
from gchat.run.folder import write_atomically
from gchat.run_length import LENGTHS

_UNIT = "bits per byte"
_OF_RUNGS = {
    "model.depth": "--depths",
    **{f"training.{name}": "--tokens-per-param" for name in LENGTHS},
}
"""Fields that each rung decides."""
_OF_POINTS = {"--points", "--leave-out-worst", "--out", "--json", "--no-json"}


@dataclass(frozen=True)
class Ladder:
    """Train a preset at growing depths, fit the law of their losses, and predict the next one.

    With several ratios of tokens to parameters, or with --points, the law has two axes and says
    how to split a budget of FLOPs.

    Examples:
        gchat ladder --depths 2 3 4 5 6 --hold-out
        gchat ladder --depths 2 3 4 5 --tokens-per-param 0.5 1 2
        gchat ladder --points measured.csv
    """

    preset: str = "cpu"
    """Preset of every rung."""
    depths: tuple[int, ...] = (2, 3, 4, 5)
    """Depths of the rungs."""
    predict: int | None = None
    """Depth to predict; default: one above the last rung."""
    hold_out: bool = False
    """Leave the last rung out of the law, and compare it with the prediction."""
    tokens_per_param: tuple[float, ...] = (1.0,)
    """Training tokens per matmul parameter, the same for every rung; several for two axes."""
    seeds: tuple[int, ...] = (1, 2)
    """Seeds of every rung."""
    set: tuple[str, ...] = ()
    """More options of every training, as FIELD=VALUE; each --set adds to the ones before."""
    data: str | None = None
    """Prepared data set; default: the preset's corpus, prepared once."""
    points: str | None = None
    """CSV file with the columns params, tokens (or flops) and loss: fit it, train nothing."""
    leave_out_worst: int = 0
    """Highest losses of --points to drop."""
    out: str = "runs/ladder"
    """Folder of runs and results."""
    dry_run: bool = False
    """Print the rungs; train nothing."""
    json: bool = False
    """Print the ladder, or with --dry-run its rungs, as one JSON object."""

    def check(self, args: Sequence[str]) -> None:
        """Raises ConfigError for options that have no effect together."""
        typed = typed_options(args)
        if self.points is not None and (rest := sorted(typed - _OF_POINTS)):
            raise ConfigError(f"{rest[0]} is given with --points", "leave it out: nothing trains")
        if self.points is None and "--leave-out-worst" in typed:
            raise ConfigError("--leave-out-worst is given without --points", "leave it out")
        if self.predict is not None and len(self.tokens_per_param) > 1:
            raise ConfigError(
                f"--predict {self.predict} is given with several ratios of tokens to parameters",
                "use --hold-out, or one ratio",
            )
        if self.predict is not None and self.predict < 1:
            raise ConfigError(f"--predict is {self.predict}", "use a depth of 1 or more")
        if self.hold_out and len(self.tokens_per_param) == 1 and len(self.depths) < 5:
            raise ConfigError(
                f"--hold-out leaves {len(self.depths) - 1} of {len(self.depths)} depths to fit",
                "give five depths or more: three points fit any law of three numbers",
            )
        if self.predict is not None and self.hold_out:
            raise ConfigError(
                f"--predict {self.predict} is given with --hold-out", "give one of them"
            )


def ladder_main(args: list[str]) -> None:
    """`gchat ladder`."""
    options = parse(Ladder, args, prog="gchat ladder", description=inspect.getdoc(Ladder))
    options.check(args)
    folder = Path(options.out).resolve()
    if options.points is not None:
        points = scaling.read_points(Path(options.points), options.leave_out_worst)
        make_folder(folder)  # what cannot be written is said before the bootstrap's minute
        _show_analysis(scaling.analyse(points), folder, options, "as given")
        return
    stay_on_host()  # a parent of trainings that held the accelerator would leave them none
    owned = _OF_RUNGS | (OF_CORPUS if options.data else {})
    preset, *more = training_words(options.preset, options.set, owned)
    ratios = options.tokens_per_param
    plan = ladder.ladder_sweep(preset, options.depths, ratios, options.seeds, more)
    plan.check()
    if options.dry_run:
        _show_plan(plan, options)
        return
    data_dir = sweeping.data_of(plan.arguments, options.data)
    wanted = plan.cells(source_tree.code_at(worktrees.repository()), data_dir)
    results = sweeping.run_cells(wanted, folder)
    info = load_manifest(data_dir).tokenizer
    vocab = (info.vocab_size, info.padded_vocab_size)
    if len(ratios) == 1:
        _show_ladder(plan, results, vocab, folder, options)
        return
    _show_two_axes(results, vocab, folder, options)


def _show_plan(plan: sweeping.Sweep, options: Ladder) -> None:
    """The rungs with their sizes; those of a corpus not prepared yet by the ids it asks for."""
    config = load(list(plan.arguments), prog="gchat ladder")
    vocab = (config.data.vocab_size, config.data.vocab_size)
    if options.data is not None:
        info = load_manifest(options.data).tokenizer
        vocab = (info.vocab_size, info.padded_vocab_size)
    rungs: list[dict[str, Any]] = []
    for size, words in plan.sizes.items():
        arguments = (*plan.arguments, *words)
        params, tokens = ladder.params_of(arguments, vocab)
        rung = {"size": size, "params": params, "tokens": tokens, "seeds": list(plan.seeds)}
        rungs.append(rung | {"arguments": list(arguments)})
        if not options.json:
            print(
                f"{size}: {params:,} matmul parameters, {len(plan.seeds)} x {tokens:,} tokens: "
                f"{' '.join(arguments)}"
            )
    if options.json:
        print(json.dumps({"rungs": rungs}))


def _show_ladder(
    plan: sweeping.Sweep, results: Sequence[Result], vocab: tuple[int, int], folder: Path,
    options: Ladder,
) -> None:  # fmt: skip
    """One ratio of tokens to parameters: the law of one axis, which wants every rung."""
    ladder.check_ended(results, folder)
    if bad := ladder.diverged(results):
        raise GaiaError(
            f"{len(bad)} of {len(results)} trainings diverged: {ladder.named(bad)}",
            f"{ladder.STEADIER}, or leave out the depth",
        )
    made = ladder.rungs(results, vocab)
    known, last = (made[:-1], made[-1]) if options.hold_out else (made, None)
    depth = options.predict or (last.depth if last else made[-1].depth + 1)
    more = ladder.rung_words(depth, options.tokens_per_param[0])
    params, _ = ladder.params_of((*plan.arguments, *more), vocab)
    said = ladder.predict(known, params, measured=last.mean if last else None)
    ladder.picture(known, said, folder / "ladder.png")
    _show(ladder.shown(known, said), ladder.as_dict(known, said), folder, options)


def _show_two_axes(
    results: Sequence[Result], vocab: tuple[int, int], folder: Path, options: Ladder
) -> None:
    """Several ratios: the law of two axes without what diverged, which is named beside it.

    Raises:
        GaiaError: trainings failed, or so many diverged that there is no law, or nothing held out.
    """
    ladder.check_ended(results, folder)
    bad = ladder.diverged(results)
    points, depths = ladder.points(results, vocab)
    last = max(options.depths)
    held = depths == (last if options.hold_out else 0)
    if options.hold_out and not held.any():
        raise GaiaError(
            f"every training of depth {last} diverged, which was to be held out",
            f"{ladder.STEADIER}, or leave out --hold-out",
        )
    try:
        analysis = scaling.analyse(points.kept(~held), points.kept(held))
    except ConfigError as error:
        if not bad:
            raise
        raise GaiaError(
            f"{len(bad)} of {len(results)} trainings diverged, and the rest gives no law: "
            f"{error.problem}",
            ladder.STEADIER,
        ) from None
    lines = [f"diverged, and no part of the law: {ladder.named(bad)}"] if bad else []
    facts = {"diverged": [{"size": one.size, "seed": one.seed} for one in bad]}
    _show_analysis(analysis, folder, options, _UNIT, lines, facts)


def _show_analysis(
    analysis: scaling.Analysis, folder: Path, options: Ladder, unit: str,
    more_lines: Sequence[str] = (), more_facts: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Several ratios, or a table: the law of two axes."""
    scaling.picture(analysis, folder / "ladder.png", unit)
    lines = [*scaling.shown(analysis), *more_lines]
    _show(lines, scaling.facts(analysis) | dict(more_facts), folder, options)


def _show(lines: Sequence[str], facts: dict, folder: Path, options: Ladder) -> None:
    write_atomically(folder / "ladder.json", json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts) if options.json else "\n".join(lines))
    print(f"picture: {folder / 'ladder.png'}", file=sys.stderr if options.json else sys.stdout)

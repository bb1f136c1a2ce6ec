"""Length of the runs of a comparison, and the interval of their evaluations."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError
from gaia.runtime import Machine
from gaia.storage.files import open_atomic
from gchat.config import TrainConfig, derive, load, typed_options
from gchat.model_shape import matmul_params
from gchat.research import machine

TRAINING_SHARE = 0.6
"""Share of a comparison's time that trains; the rest starts, compiles and evaluates."""
POINTS = 8
"""Points of a compared run's curve, where --set eval.every_steps=N does not say otherwise."""
_SIZES = {"--model.depth", "--model.dim"}
"""Options that take the choice of the depth from the minutes."""


def chosen(
    arguments: Sequence[str], minutes: float, runs: int, kept: Path, *, dry_run: bool = False
) -> list[str]:
    """Options of `gchat train` that make each run as long as the budget allows, on this machine.

    They are measured, so the same command would find others a minute later: `kept` holds those that
    a comparison began with, so that one that was killed goes on with its cells.

    Args:
        arguments: of each run, the preset first.
        minutes: for all runs together, preparation and evaluation included.
        runs: their number.
        kept: file of the choice; of another command's choice no notice is taken.
        dry_run: write nothing.

    Raises:
        ConfigError: the minutes are too few for anything to be learnt.
    """
    asked = [list(arguments), minutes, runs]
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["asked"] == asked:
            return list(before["options"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not one of ours
    options = _measured(arguments, minutes, runs)
    if not dry_run:
        with open_atomic(kept) as file:
            file.write(json.dumps({"asked": asked, "options": options}).encode())
    return options


def _measured(arguments: Sequence[str], minutes: float, runs: int) -> list[str]:
    """Depth and tokens for this machine's speed now, and what makes them fit its memory."""
    from gchat.speedrun_plan import CPU_DEPTHS, DEPTHS

    config, typed = load(list(arguments), prog="gchat compare"), typed_options(arguments)
    here, peak = machine.ask(config.model.matmul_precision, config.model.compute_dtype)
    seconds = TRAINING_SHARE * 60 * minutes / runs
    depths = CPU_DEPTHS if here.platform == "cpu" else DEPTHS
    fixed = bool(typed & _SIZES)
    sized = _largest(config, [config.model.depth] if fixed else depths, here, peak, seconds)
    if sized is None:
        raise ConfigError(
            f"--minutes {minutes:g} leave {seconds:.0f} s of training for each of {runs} runs",
            "raise it, name --tokens, or take fewer --axes or --seeds",
        )
    words = [] if fixed else [f"--model.depth={sized.model.depth}"]
    return [
        *words,
        f"--training.tokens={sized.training.amounts.tokens}",
        *_fitting(config, sized, typed),
    ]


def _fitting(config: TrainConfig, sized: TrainConfig, typed: Collection[str]) -> list[str]:
    """Options of the shape that fits the memory, where it is another than the preset's."""
    words: list[str] = []
    if sized.model.remat != config.model.remat:
        words.append(f"--model.remat={sized.model.remat}")
    if sized.training.grad_accum != config.training.grad_accum:
        # It divides this batch, and maybe not that of other tokens.
        words.append(f"--training.batch-size={sized.training.amounts.batch_size}")
        words.append(f"--training.grad-accum={sized.training.grad_accum}")
    return [word for word in words if word.partition("=")[0] not in typed]


def _largest(
    config: TrainConfig, depths: Sequence[int], here: Machine, peak: float, seconds: float
) -> TrainConfig | None:
    """The largest depth that the seconds feed, or the smallest one that learns anything in them.

    None where no depth does.

    Raises:
        ConfigError: the machine can take none, or the options do not go together.
    """
    from gchat.speedrun_plan import CPU_TOKENS_PER_PARAM

    on_cpu = here.platform == "cpu"
    enough = CPU_TOKENS_PER_PARAM if on_cpu else config.training.tokens_per_param
    largest: TrainConfig | None = None
    refused: list[ConfigError] = []
    for depth in depths:
        deeper = replace(config, model=replace(config.model, depth=depth))
        try:
            sized = _sized(deeper, here, peak, seconds)
        except ConfigError as error:  # beyond the memory, or not to be divided over the mesh
            refused.append(error)
            continue
        if sized is None:
            return largest
        fed = sized.training.amounts.tokens >= enough * matmul_params(sized.model)
        if largest is None or fed:
            largest = sized
        if not fed:
            break
    if largest is None:
        raise refused[0]
    return largest


def _sized(config: TrainConfig, here: Machine, peak: float, seconds: float) -> TrainConfig | None:
    """A configuration with as many tokens as the seconds buy, in the shape that fits the machine.

    None where these are too few to learn anything from.

    Raises:
        ConfigError: nothing of it fits.
    """
    from gchat.scaling.estimate import estimate, placed
    from gchat.scaling.plan import vocabulary
    from gchat.speedrun_plan import LEAST_STEPS

    vocab, padded = vocabulary(config)

    def shaped(tokens: int | None) -> TrainConfig:
        training = replace(config.training, tokens=tokens, steps=None)
        given = replace(config, training=training)
        return placed(derive(given, vocab_size=vocab, padded_vocab_size=padded)[0], here)

    # The batch may follow from the tokens, but the speed hardly from it: the preset's ratio of
    # tokens to parameters is near enough for that.
    first = shaped(None)
    cost = estimate(first, here, peak)
    step = first.training.amounts.batch_size * first.model.seq_len
    steps = int(seconds * cost.tokens / cost.seconds) // step
    return shaped(steps * step) if steps > LEAST_STEPS else None


def evaluations(arguments: Sequence[str], data_dir: str) -> list[str]:
    """Options that give each run a curve: a preset's own interval may be longer than the run."""
    if "--eval.every-steps" in typed_options(arguments):
        return []
    info = load_manifest(data_dir).tokenizer
    config, _ = derive(
        load(list(arguments), prog="gchat compare"),
        vocab_size=info.vocab_size,
        padded_vocab_size=info.padded_vocab_size,
    )
    return [f"--eval.every_steps={max(1, config.training.amounts.steps // POINTS)}"]

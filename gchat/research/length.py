"""Length of the runs of a comparison, and the interval of their evaluations."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gaia import runtime
from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError
from gaia.storage.files import open_atomic
from gchat.config import derive, load

TRAINING_SHARE = 0.6
"""Share of a comparison's time that trains; the rest starts, compiles and evaluates."""
POINTS = 8
"""Points of a compared run's curve, where --set eval.every_steps=N does not say otherwise."""


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
    """Depth and tokens for this machine's speed now."""
    from gchat.scaling.estimate import overhead_seconds
    from gchat.speedrun_plan import LEAST_STEPS, Plan

    config = load(list(arguments), prog="gchat compare")
    machine = runtime.start(matmul_precision=config.model.matmul_precision)
    peak, _ = runtime.peak_flops(machine, config.model.compute_dtype)
    seconds = TRAINING_SHARE * 60 * minutes / runs
    deadline = time.monotonic() + seconds + overhead_seconds(machine, peak)
    unsized = replace(config, training=replace(config.training, tokens=10**12, steps=None))
    plan = Plan(unsized, machine, peak, deadline, strict=False)
    plan.choose_size(fixed_depth=bool(_named(arguments) & {"model.depth", "model.dim"}))
    model, tokens = plan.config.model, plan.config.training.tokens
    rows = 1 if config.training.batch_size is None else config.training.batch_size
    if tokens is None or tokens <= LEAST_STEPS * rows * model.seq_len:
        raise ConfigError(
            f"--minutes {minutes:g} leave {seconds:.0f} s of training for each of {runs} runs",
            "raise it, name --tokens, or take fewer --axes or --seeds",
        )
    return [f"--model.depth={model.depth}", f"--training.tokens={tokens}"]


def evaluations(arguments: Sequence[str], data_dir: str) -> list[str]:
    """Options that give each run a curve: a preset's own interval may be longer than the run."""
    if "eval.every_steps" in _named(arguments):
        return []
    info = load_manifest(data_dir).tokenizer
    config, _ = derive(
        load(list(arguments), prog="gchat compare"),
        vocab_size=info.vocab_size,
        padded_vocab_size=info.padded_vocab_size,
    )
    return [f"--eval.every_steps={max(1, config.training.amounts.steps // POINTS)}"]


def _named(arguments: Sequence[str]) -> set[str]:
    """Fields that the words set."""
    words = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return {word.removeprefix("--").replace("-", "_") for word in words}

"""The length of a stage: epochs of its data to steps, and what follows from the number of steps."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

from gaia.errors import ConfigError
from gaia.parallel import ROWS, make_mesh
from gchat.config import TrainConfig


class Shares(Protocol):
    """Defaults of a stage that are shares of its steps."""

    @property
    def warmup_share(self) -> float:
        """Warm-up steps."""
        ...

    @property
    def evaluations(self) -> int:
        """Number of evaluations on the way."""
        ...


def with_length(
    config: TrainConfig, rows: float, shares: Shares, typed: Collection[str]
) -> tuple[TrainConfig, list[str]]:
    """Batch, steps, warm-up and times of evaluation for so many rows, and sentences on them.

    Args:
        config: not derived; what it says of these counts where it was given.
        rows: that hold the data once.
        shares: defaults of the stage.
        typed: full names of the options that were given.

    Raises:
        ConfigError: neither epochs nor steps are given, or a batch is larger than the data.
    """
    config, said = _with_batch(config, int(rows), "--training.batch-size" in typed)
    training, stage = config.training, config.stage
    batch = 1 if training.batch_size is None else training.batch_size
    steps = training.steps
    if steps is None and training.tokens is not None:
        steps = max(1, round(training.tokens / (batch * config.model.seq_len)))
    if steps is None:
        if stage.epochs is None:
            raise ConfigError("stage.epochs is not set", "give --epochs or --max-steps")
        steps = max(1, round(stage.epochs * rows / batch))
    epochs = round(steps * batch / rows, 4)
    said.append(f"epochs: {epochs:,.2f} of {rows:,.0f} rows, {steps:,} steps of {batch} rows")
    warmup, every = config.optim.warmup_steps, config.eval.every_steps
    if "--optim.warmup-steps" not in typed:
        warmup = math.ceil(shares.warmup_share * steps)
    if "--eval.every-steps" not in typed:
        every = max(1, round(steps / shares.evaluations))
    return replace(
        config,
        training=replace(training, steps=steps, tokens=None),
        optim=replace(config.optim, warmup_steps=warmup),
        eval=replace(config.eval, every_steps=every),
        stage=replace(stage, epochs=epochs),
    ), said


def _with_batch(config: TrainConfig, rows: int, typed: bool) -> tuple[TrainConfig, list[str]]:
    """An inherited batch no larger than the data; a given one stays, and the loader refuses it."""
    training = config.training
    batch = training.batch_size
    if batch is None:
        batch = 32
    if typed or batch <= rows:
        return replace(config, training=replace(training, batch_size=batch)), []
    mesh = make_mesh(config.mesh)
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    smaller, accum = max(parts, rows // parts * parts), training.grad_accum
    while smaller % (accum * parts):
        accum -= 1
    said = f"batch: {smaller} rows in place of the base run's {batch}: the data makes {rows}"
    return replace(config, training=replace(training, batch_size=smaller, grad_accum=accum)), [said]

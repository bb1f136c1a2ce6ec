"""A batch that grows: `4@0 2@200 1@400` is quarters of it, halves from step 200, then all of it.

A step always takes the whole batch from the data. Where the ramp says K, the step is K updates one
after another, each of every K-th row. So steps, tokens, data position, checkpoints and schedules
are those of a run without a ramp; only the optimizer counts more updates, and `step_of` turns its
count back into steps. Rates fall with the root of K, as they do for smaller batches elsewhere
(`OptimConfig.batch_reference`; Malladi et al. 2022, arXiv 2205.10287).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from gaia.errors import ConfigError
from gaia.step_ranges import read_changes


@dataclass(frozen=True)
class BatchRamp:
    """Updates that a step is split into, from certain steps on; one before the first of them."""

    starts: tuple[int, ...] = ()
    """Finished steps at which a stage begins, ascending."""
    parts: tuple[int, ...] = ()
    """Updates of each of its steps."""

    @classmethod
    def read(cls, field: str, texts: Sequence[str]) -> "BatchRamp":
        """The ramp that an option's texts say, each K@STEP.

        Raises:
            ConfigError: a text of another form, a K that is no whole number above 0, steps that do
                not ascend, or a change in epochs that nobody has turned into steps.
        """
        changes = read_changes(field, texts)
        for change in changes:
            if change.value < 1 or change.value != round(change.value):
                raise ConfigError(
                    f"{field} has {change.value:g} updates a step",
                    "use a whole number of 1 or more, as in 4@0 2@200 1@400",
                )
            if change.in_epochs:
                raise ConfigError(
                    f"{field} is {' '.join(texts)}, and nothing says how many steps an epoch has",
                    "write steps, as in 4@0 1@200",
                )
        return cls(tuple(int(c.at) for c in changes), tuple(int(c.value) for c in changes))

    def check(self, field: str, steps: int) -> None:
        """Raises ConfigError for a stage that begins behind a run of `steps` steps, or changes
        nothing."""
        for start, before, parts in zip(self.starts, (1, *self.parts), self.parts, strict=False):
            if start >= steps:
                raise ConfigError(
                    f"{field} has {parts}@{start}, and the run has only {steps} steps",
                    "choose an earlier step, or leave it out",
                )
            if parts == before:
                raise ConfigError(
                    f"{field} has {parts}@{start}, which is what holds before it", "leave it out"
                )

    @property
    def kinds(self) -> tuple[int, ...]:
        """The different numbers of updates that a step can have, ascending."""
        return tuple(sorted({1, *self.parts}))

    def parts_at(self, step: int) -> int:
        """Updates of the step that follows `step` finished ones."""
        reached = [k for start, k in zip(self.starts, self.parts, strict=True) if step >= start]
        return reached[-1] if reached else 1

    def step_of(self, update: Any) -> Any:
        """Finished steps, fp32 and with fractions, after `update` finished updates."""
        if not self.parts:
            return update
        update = jnp.asarray(update, jnp.float32)
        step = update
        for start, first, parts in self._stages():
            step = jnp.where(update >= first, start + (update - first) / parts, step)
        return step

    def rate_of(self, update: Any) -> Any:
        """Factor of the learning rates of the update after `update` finished ones, fp32."""
        if not self.parts:
            return 1.0
        rate = jnp.ones(())
        for _, first, parts in self._stages():
            rate = jnp.where(jnp.asarray(update) >= first, parts**-0.5, rate)
        return rate

    def _stages(self) -> list[tuple[int, int, int]]:
        """Each stage's first step, the updates before it, and the updates of its steps."""
        stages, first, before = [], 0, (0, 1)
        for start, parts in zip(self.starts, self.parts, strict=True):
            first += (start - before[0]) * before[1]
            stages.append((start, first, parts))
            before = start, parts
        return stages

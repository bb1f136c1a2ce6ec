"""`--batch auto`: the most rows at once whose compiled update fits the memory of the device.

The batch of a step stays as it was asked for; gradients are accumulated until it is reached. Each
candidate is compiled, as the run would, and the compiler says what the program takes: nothing runs
and nothing crashes. What is chosen is compiled once, for the compile cache keeps it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gaia import parallel
from gaia.device_memory import free_memory
from gaia.errors import ConfigError
from gaia.processes.group import Group
from gchat.config import TrainConfig
from gchat.train_state import (
    abstract_batch,
    abstract_state,
    check_rows,
    graphdef,
    micro_batches,
)
from gchat.train_step import make_train_step

SHARE = 0.9
"""Share of a device's memory that the update may take; evaluation and fragments need the rest."""

Compile = Callable[[TrainConfig, Mesh], int | None]
"""Bytes of a device that the update of a derived configuration takes; None: the compiler refuses,
for want of memory."""


class Fit(NamedTuple):
    """A choice, for people."""

    config: TrainConfig
    rows: int
    """At once, over all devices."""
    bytes: int
    limit: int

    def describe(self) -> str:
        """One sentence."""
        training = self.config.training
        return (
            f"batch: {self.rows} rows at once x {training.grad_accum} accumulated = "
            f"{training.batch_size}; the update takes {self.bytes / 2**30:.2f} of "
            f"{self.limit / 2**30:.2f} GiB, as compiled"
        )


def fitted(
    config: TrainConfig,
    *,
    limit: int | None = None,
    compiled_bytes: Compile | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Fit:
    """The largest micro-batch that fits.

    Args:
        config: derived.
        limit: bytes of a device; what it has free when left out.
        compiled_bytes: asks the compiler; for stages with an update of their own.
        report: told of each candidate that was compiled.

    Raises:
        ConfigError: not even one row on each device fits.
    """
    mesh = parallel.make_mesh(config.mesh)
    limit = limit or free_here(mesh)
    ask = compiled_bytes or update_bytes
    chosen: tuple[TrainConfig, int] | None = None
    smallest = 0
    accums = _accumulations(config, mesh)
    low, high = 0, len(accums) - 1  # ascending: more accumulation, fewer rows, less memory
    while low <= high:
        middle = (low + high) // 2
        tried = replace(config, training=replace(config.training, grad_accum=accums[middle]))
        taken = ask(tried, mesh)
        rows = config.training.amounts.batch_size // accums[middle]
        size = "more than there is" if taken is None else f"{taken / 2**30:.2f} GiB"
        report(f"batch: {rows} rows at once take {size}")
        if taken is not None and taken <= limit:
            chosen, high = (tried, taken), middle - 1
        else:
            smallest, low = taken or 0, middle + 1
    if chosen is None:
        raise ConfigError(
            f"--batch auto: one row on each device takes {smallest / 2**30:.2f} GiB, and "
            f"{limit / 2**30:.2f} GiB are free",
            "lower --model.seq-len, use --model.remat full, or a larger machine",
        )
    made, taken = chosen
    return Fit(made, made.training.amounts.batch_size // made.training.grad_accum, taken, limit)


def free_here(mesh: Mesh) -> int:
    """Bytes that a program may take on each of this process's devices."""
    return int(SHARE * min(free_memory(device) for device in mesh.local_devices))


def take_batch(args: Sequence[str]) -> tuple[bool, list[str]]:
    """Takes `--batch auto` out of a command line; `--batch N` is the short name of the batch size.

    Raises:
        ConfigError: no value follows, or a number of micro-batches is given as well.
    """
    auto, rest, items = False, list[str](), iter(args)
    for item in items:
        name, equals, value = item.partition("=")
        if name != "--batch":
            rest.append(item)
            continue
        value = value if equals else next(items, "")
        if value == "auto":
            auto = True
        elif value.isdigit():
            rest.append(f"--training.batch-size={value}")
        else:
            raise ConfigError(f"--batch is {value!r}", "use auto, or a number of rows")
    if auto and any(item.replace("_", "-").startswith("--training.grad-accum") for item in rest):
        raise ConfigError("--batch auto and training.grad_accum are both given", "give one of them")
    return auto, rest


def fitted_for_all(config: TrainConfig, group: Group) -> tuple[TrainConfig, list[str]]:
    """The same for all processes of a run, with a sentence; the fullest device counts."""
    limit = min(group.all_gather(free_here(parallel.make_mesh(config.mesh))))
    fit = fitted(
        config,
        limit=limit,
        report=lambda line: print(line, flush=True) if group.first else None,
    )
    accum = max(group.all_gather(fit.config.training.grad_accum))
    training = replace(config.training, grad_accum=accum)
    return replace(config, training=training), [fit.describe()]


def _accumulations(config: TrainConfig, mesh: Mesh) -> Sequence[int]:
    """Every number of micro-batches that divides the batch over the devices, ascending; so it must
    in each stage of a batch ramp."""
    devices = math.prod(mesh.shape[axis] for axis in parallel.ROWS)
    batch = config.training.amounts.batch_size
    parallel.check_divides(
        mesh, "training.batch_size", batch, parallel.ROWS, "choose a multiple, or another mesh"
    )
    check_rows(replace(config, training=replace(config.training, grad_accum=1)), mesh)
    rows, kinds = batch // devices, config.training.ramp.kinds
    return [
        accum
        for accum in range(1, rows + 1)
        if rows % accum == 0 and all(rows % (k * micro_batches(accum, k)) == 0 for k in kinds)
    ]


def update_bytes(config: TrainConfig, mesh: Mesh) -> int | None:
    """Bytes of one device that the update takes, state and batch included, as compiled; of a batch
    ramp's updates the most."""
    state, batch, most = abstract_state(config, mesh), abstract_batch(config, mesh), 0
    for parts in config.training.ramp.kinds:
        step = make_train_step(graphdef(config), config, mesh, parts=parts)
        if (taken := program_bytes(step.lower(state, batch))) is None:
            return None
        most = max(most, taken)
    return most


def program_bytes(lowered: Any) -> int | None:
    """Bytes of one device that a lowered program takes; None where it cannot be compiled for want
    of memory."""
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
            return None
        raise
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )

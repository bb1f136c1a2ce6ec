"""Out of memory in a real run: one line with the batch and rematerialisation that would fit."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from gaia.errors import GaiaError
from gaia.runtime import Machine
from gchat.config import TrainConfig
from gchat.scaling.search import fit_hint


class OutOfMemory(GaiaError):
    """The device has too little memory for the training step."""

    exit_status = 1


@contextmanager
def exhaustion_explained(config: TrainConfig, machine: Machine) -> Iterator[None]:
    """Turns JAX's RESOURCE_EXHAUSTED into `OutOfMemory` with what would fit.

    Args:
        config: derived; what is being run.
        machine: what it runs on.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error).strip()
        if not text.startswith("RESOURCE_EXHAUSTED"):
            raise
        first = text.splitlines()[0]
        raise OutOfMemory(first.rstrip("."), fit_hint(config, machine)) from error

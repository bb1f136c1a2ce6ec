"""RoPE scalings of models whose context was stretched, as divisors of the rotary frequencies."""

import math
from collections.abc import Sequence

import numpy as np


def linear(half: int, factor: float) -> tuple[float, ...] | None:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): all frequencies / factor."""
    return None if factor == 1 else (factor,) * half


def llama3(
    half: int, theta: float, *, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Llama 3.1's scaling: slow frequencies / factor, fast ones kept, the ones between blended.

    Args:
        half: frequencies, head_dim / 2.
        theta: their base.
        factor: divisor of the slow ones.
        low: turns within the original context below which a frequency is slow.
        high: turns above which one is fast.
        original: positions of the original context.
    """
    frequency = theta ** (-np.arange(half) / half)
    turns = original * frequency / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return tuple(float(d) for d in 1 / (kept + (1 - kept) / factor))


def given(divisors: Sequence[float]) -> tuple[float, ...] | None:
    """Divisors as a file lists them; None where all are 1."""
    listed = tuple(float(d) for d in divisors)
    return None if all(d == 1 for d in listed) else listed

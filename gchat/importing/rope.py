"""RoPE scalings of models whose context was stretched, as divisors of the rotary frequencies."""

import math
from collections.abc import Sequence
from typing import Any

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


def as_options(divisors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The scaling that gives these divisors, as Hugging Face's rope_parameters state it.

    Of llama3's four numbers only three can be told from the divisors; the low_freq_factor is taken
    to be 1, as all published models have it.

    Returns:
        The fields, or None where the divisors follow no scaling that is known here.
    """
    listed = np.asarray(divisors, np.float64)
    if np.all(listed == listed[0]):
        return {"rope_type": "linear", "factor": float(listed[0])}
    factor, half = float(listed.max()), len(listed)
    kept = (1 / listed - 1 / factor) / (1 - 1 / factor)
    blended = (kept > 1e-6) & (kept < 1 - 1e-6)
    if listed.min() != 1 or blended.sum() < 2:
        return None
    # kept = (original * frequency / 2 pi - low) / (high - low), a line in the frequency.
    slope, offset = np.polyfit((theta ** (-np.arange(half) / half))[blended], kept[blended], 1)
    high = round(1 - 1 / offset, 3)
    original = round(slope * 2 * math.pi * (high - 1))
    options = {"factor": factor, "low": 1.0, "high": high, "original": original}
    if not np.allclose(llama3(half, theta, **options), listed, rtol=1e-6):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def given(divisors: Sequence[float]) -> tuple[float, ...] | None:
    """Divisors as a file lists them; None where all are 1."""
    listed = tuple(float(d) for d in divisors)
    return None if all(d == 1 for d in listed) else listed

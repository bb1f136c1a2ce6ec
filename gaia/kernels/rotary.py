"""Rotary positions, and the norm of queries and keys that comes before them.

Both work on heads, and alone each is a pass over all of them in fp32: on TPU XLA writes the
normed heads to memory in fp32 before it rotates them, because both halves of a head need them.
`normalize_and_rotate` computes the two as one pass, forward and backward.

Shapes: B batch, T time, N heads, H head dim.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rope(NamedTuple):
    """Cosines and sines of rotary angles, fp32, [B or 1, T, 1, H/2]."""

    cos: jax.Array
    sin: jax.Array


def rope_table(
    positions_BT: jax.Array | np.ndarray,
    head_dim: int,
    theta: float,
    factors: Sequence[float] | None = None,
) -> Rope:
    """Angles position * theta^(-2i/H), in fp32 whatever the compute dtype (Su et al. 2021).

    Each frequency is divided by its entry of `factors` [H/2], as models do whose context was
    stretched after training (Llama 3.1's scaling, linear interpolation).

    Positions known while tracing (a NumPy array) give constants. XLA on CPU would fuse the
    cosines into every use of them and compute each anew for every head and row, 7% of a step.
    """
    xp = np if isinstance(positions_BT, np.ndarray) else jnp
    frequency = np.float32(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if factors is not None:
        frequency = frequency / np.asarray(factors, np.float32)
    angle = positions_BT.astype(np.float32)[:, :, None, None] * frequency[None, None, None, :]
    return Rope(jnp.asarray(xp.cos(angle)), jnp.asarray(xp.sin(angle)))


def apply_rope(x_BTNH: jax.Array, rope: Rope) -> jax.Array:
    """Rotates the pairs (i, i + H/2), the half-split convention of Llama in Hugging Face."""
    a, b = _rotated(*_halves(x_BTNH.astype(jnp.float32)), rope)
    return jnp.concatenate([a, b], axis=-1).astype(x_BTNH.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_and_rotate(x_BTNH: jax.Array, gain_H: jax.Array, rope: Rope, eps: float) -> jax.Array:
    """apply_rope(x / rms(x) * gain), computed as rotation(x * gain) / rms(x); dtype kept.

    Differentiable with respect to `x_BTNH` and `gain_H`.
    """
    return _forward(x_BTNH, gain_H, rope, eps)[0]


def _forward(x_BTNH, gain_H, rope, eps):
    x = x_BTNH.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    (a, b), (gain_a, gain_b) = _halves(x), _halves(gain_H.reshape(1, 1, 1, -1))
    y_a, y_b = _rotated(a * gain_a, b * gain_b, rope)
    y = jnp.concatenate([y_a * inverse, y_b * inverse], axis=-1).astype(x_BTNH.dtype)
    return y, (x_BTNH, gain_H, rope, inverse)


def _backward(eps, saved, dy_BTNH):
    del eps
    x_BTNH, gain_H, rope, inverse = saved
    H = x_BTNH.shape[-1]
    a, b = _halves(x_BTNH.astype(jnp.float32))
    gain_a, gain_b = _halves(gain_H.reshape(1, 1, 1, -1))
    back = Rope(rope.cos, -rope.sin)
    d_a, d_b = _rotated(*_halves(dy_BTNH.astype(jnp.float32)), back)  # of x * gain, times rms(x)
    along = jnp.sum(a * gain_a * d_a + b * gain_b * d_b, axis=-1, keepdims=True)
    pull = along * inverse**3 / H
    dx_a = d_a * gain_a * inverse - a * pull
    dx_b = d_b * gain_b * inverse - b * pull
    dx = jnp.concatenate([dx_a, dx_b], axis=-1).astype(x_BTNH.dtype)
    dgain = [jnp.sum(h * d * inverse, axis=(0, 1, 2)) for h, d in ((a, d_a), (b, d_b))]
    return dx, jnp.concatenate(dgain).astype(gain_H.dtype), None


normalize_and_rotate.defvjp(_forward, _backward)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = jnp.split(x, 2, axis=-1)
    return a, b


def _rotated(a: jax.Array, b: jax.Array, rope: Rope) -> tuple[jax.Array, jax.Array]:
    return a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin

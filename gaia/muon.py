"""Muon and its variants: momentum, orthogonalized, for the matrices inside the blocks.

    momentum -> (equilibrate) -> orthogonalize -> (renormalize) -> (NorMuon) -> scale

Each step in brackets is an option of `Muon`. Leaves are [layers, in, out], each layer a matrix of
its own; on a mesh the iterations are shared out over the devices, layer by layer
(`parallel.by_layer`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaia import parallel

Iteration = Literal["polar_express", "quintic"]


@dataclass(frozen=True)
class Muon:
    """One update rule of Muon's family."""

    momentum: Callable[[jax.Array], Any] | float = 0.95
    """Nesterov momentum: a number, or a function of the step, counted from 0."""
    steps: int = 5
    """Iterations of `orthogonalize`."""
    dtype: str = "float32"
    """Dtype of the iterations."""
    iteration: Iteration = "polar_express"
    equilibrate: bool = False
    """Scale the columns of an update to one norm first (MuonEq, arXiv 2603.28254)."""
    renormalize: bool = False
    """Give each result the norm of an exact semi-orthogonal matrix (Muon+, arXiv 2602.21545)."""
    normuon_beta2: float = 0.0
    """Decay of the mean squares by which NorMuon (arXiv 2510.05491) evens out neurons; 0 is off."""


class MuonState(NamedTuple):
    """Momentum of each matrix, fp32."""

    momentum: Any


class VariantState(NamedTuple):
    """The same for a rule that counts steps or knows second moments."""

    momentum: Any
    second: Any
    """Mean squares [layers, 1, out] or [layers, in, 1], fp32; [layers, 1, 1] of 0 when unused."""
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    """Updates so far, int32."""


# Quintic coefficients by iteration that take every singular value in [1e-3, 1] to 1 within
# bf16 precision (Polar Express: Amsel et al. 2025, algorithm 1 and its table, safety 1.02).
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# One polynomial for every iteration, with the steepest slope at 0 (Jordan et al. 2024).
_QUINTIC = ((3.4445, -4.7750, 2.0315),)
_COEFFICIENTS: dict[Iteration, tuple[tuple[float, float, float], ...]] = {
    "polar_express": _POLAR_EXPRESS,
    "quintic": _QUINTIC,
}


def orthogonalize(
    g: jax.Array, steps: int, dtype: str = "float32", iteration: Iteration = "polar_express"
) -> jax.Array:
    """The nearest semi-orthogonal matrix to each matrix [..., in, out] of `g`, approximately.

    Singular values end within about 0.7 .. 1.2 of 1 (bf16 or fp32 alike). Source: Jordan et al.
    2024 (Muon), by default with the coefficients of Polar Express.
    """
    x = g.astype(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)
    x = x / (norm * 1.02 + 1e-6).astype(dtype)

    def step(x, abc):
        a, b, c = abc
        gram = x @ x.mT
        return a * x + (b * gram + c * (gram @ gram)) @ x, None

    known = _COEFFICIENTS[iteration]
    coefficients = [known[min(i, len(known) - 1)] for i in range(steps)]
    if parallel.size(*parallel.AXES) == 1:
        for abc in coefficients:
            x, _ = step(x, abc)
    else:  # one iteration to compile for each stack of matrices, not all of them
        x, _ = jax.lax.scan(step, x, jnp.asarray(coefficients, dtype))
    return (x.mT if tall else x).astype(jnp.float32)


def scale_by_muon(rule: Muon) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized, scaled by sqrt(max(1, out/in)) (Jordan et al. 2024)."""
    plain = not callable(rule.momentum) and not rule.normuon_beta2

    def orthogonal(g_LIO: jax.Array) -> jax.Array:
        x = _equilibrated(g_LIO) if rule.equilibrate else g_LIO
        x = orthogonalize(x, rule.steps, rule.dtype, rule.iteration)
        return (_renormalized(x) if rule.renormalize else x).astype(g_LIO.dtype)

    def init(params):
        momentum = jax.tree.map(jnp.zeros_like, params)
        if plain:
            return MuonState(momentum)
        second = jax.tree.map(lambda p: jnp.zeros(_second_shape(p, rule), jnp.float32), params)
        return VariantState(momentum, second, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        beta = rule.momentum(state.count) if callable(rule.momentum) else rule.momentum
        average = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.momentum, updates)

        def direction(m, g):
            nesterov = beta * m + (1 - beta) * g
            # Cast first: half the bytes travel, and the iterations would cast anyway.
            nesterov = nesterov.astype(rule.dtype)
            with jax.named_scope("muon"):
                return parallel.by_layer(orthogonal, nesterov).astype(jnp.float32)

        def scaled(x):
            return max(1.0, x.shape[-1] / x.shape[-2]) ** 0.5 * x

        directions = jax.tree.map(direction, average, updates)
        if plain:
            return jax.tree.map(scaled, directions), MuonState(average)
        second = state.second
        if rule.normuon_beta2:
            leaves, shape = jax.tree.flatten(directions)
            seconds = shape.flatten_up_to(second)
            pairs = [_even(x, v, rule.normuon_beta2) for x, v in zip(leaves, seconds, strict=True)]
            directions, second = (shape.unflatten(part) for part in zip(*pairs, strict=True))
        return jax.tree.map(scaled, directions), VariantState(average, second, state.count + 1)

    return optax.GradientTransformation(init, update)


def _equilibrated(g_LIO: jax.Array) -> jax.Array:
    """Every column (an output neuron) scaled to the root mean square of all column norms."""
    g = g_LIO.astype(jnp.float32)
    whole = jnp.linalg.norm(g, axis=(-2, -1), keepdims=True) / g.shape[-1] ** 0.5
    columns = jnp.maximum(jnp.linalg.norm(g, axis=-2, keepdims=True), 1e-6)
    return (g * (whole / columns)).astype(g_LIO.dtype)


def _renormalized(x_LIO: jax.Array) -> jax.Array:
    """Every matrix with the Frobenius norm of a semi-orthogonal one."""
    norm = jnp.linalg.norm(x_LIO, axis=(-2, -1), keepdims=True)
    return x_LIO * (min(x_LIO.shape[-2:]) ** 0.5 / jnp.maximum(norm, 1e-6))


def _short_dim(shape: tuple[int, ...]) -> int:
    """The dim that NorMuon takes means over: the shorter one, of a square matrix `in`."""
    return -2 if shape[-1] >= shape[-2] else -1


def _second_shape(p: jax.Array, rule: Muon) -> tuple[int, ...]:
    if not rule.normuon_beta2:
        return (*p.shape[:-2], 1, 1)
    shape = list(p.shape)
    shape[_short_dim(p.shape)] = 1
    return tuple(shape)


def _even(x_LIO: jax.Array, second: jax.Array, beta2: float) -> tuple[jax.Array, jax.Array]:
    """Rows or columns divided by their root mean squares over time; each matrix keeps its norm."""
    dim = _short_dim(x_LIO.shape)
    square = parallel.whole(jnp.mean(jnp.square(x_LIO), axis=dim, keepdims=True))
    second = beta2 * second + (1 - beta2) * square
    factor = jax.lax.rsqrt(jnp.maximum(second, 1e-10))
    before = jnp.sum(square, axis=(-2, -1), keepdims=True)
    after = jnp.sum(square * jnp.square(factor), axis=(-2, -1), keepdims=True)
    factor = factor * jnp.sqrt(before / jnp.maximum(after, 1e-20))
    return x_LIO * factor, second

"""Optimizers and schedules: AdamW, and Muon for the matrices inside the blocks.

A parameter belongs to one of five groups by the role it is born with (`gaia.params`): `matrix`
(kernels of the stacked blocks), `embed` (tables), `head` (the output kernel), `adapter` (low-rank
adapters, always AdamW) and `gain` (all else). Weight decay is decoupled and touches matrices only:
block matrices, the head and adapters.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaia import parallel
from gaia.errors import ConfigError
from gaia.step_ranges import in_steps, read_changes, stepwise

Decay = float | Callable[[Any], Any]


@dataclass(frozen=True)
class OptimConfig:
    """The update rule of the parameters, and its rates."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for block matrices and adamw for the rest."""
    lr: float = 3e-4
    """Peak AdamW learning rate of every group that has none of its own."""
    embed_lr: float | None = None
    """Peak learning rate of embedding tables; lr when left out."""
    head_lr: float | None = None
    """Peak learning rate of the output head; lr when left out."""
    matrix_lr: float = 0.02
    """Peak Muon learning rate of block matrices."""
    beta1: float = 0.9
    """AdamW first-moment decay."""
    beta2: float = 0.95
    """AdamW second-moment decay."""
    eps: float = 1e-10
    """AdamW epsilon; gradients are means over many tokens, so second moments are tiny."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices under AdamW, times the learning rate."""
    matrix_weight_decay: float = 0.0
    """Decoupled decay of block matrices under Muon, times the learning rate."""
    weight_decay_steps: tuple[str, ...] = ()
    """Changes of weight_decay, each its value from a step or epoch on: 0.05@2epochs 0.01@9000."""
    matrix_weight_decay_steps: tuple[str, ...] = ()
    """The same for matrix_weight_decay."""
    momentum: float = 0.95
    """Muon's Nesterov momentum."""
    newton_schulz_steps: int = 5
    """Iterations that orthogonalize a Muon update."""
    newton_schulz_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of those iterations; bfloat16 is enough and faster on accelerators."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine decay; wsd: warm-up, stable, linear decay; constant after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    decay_fraction: float = 0.65
    """Share of all steps that wsd spends decaying."""
    final_lr_fraction: float = 0.05
    """Learning rate at the last step, as a share of the peak."""
    batch_reference: int | None = None
    """Tokens per step the rates above are meant for; others scale them by a square root."""
    width_reference: int | None = None
    """Model width the AdamW rates are meant for; others scale them by its inverse root."""

    def scaled(self, batch_tokens: int, dim: int) -> tuple["OptimConfig", str]:
        """Learning rates for this batch and width, and a sentence that says what was done."""
        batch, width = self.batch_reference, self.width_reference
        by_batch = 1.0 if batch is None else (batch_tokens / batch) ** 0.5
        by_width = 1.0 if width is None else (width / dim) ** 0.5
        adam = by_batch * by_width
        result = replace(
            self,
            lr=self.lr * adam,
            embed_lr=self.peak(self.embed_lr) * adam,
            head_lr=self.peak(self.head_lr) * adam,
            matrix_lr=self.matrix_lr * by_batch,
            batch_reference=None,
            width_reference=None,
        )
        matrix = f", matrices {result.matrix_lr:.3g} (muon)" if self.name == "muon" else ""
        return result, (
            f"optimizer: {self.name}, lr {result.lr:.3g}, embedding {result.embed_lr:.3g}, "
            f"head {result.head_lr:.3g}{matrix}; scaled by {by_batch:.3f} for the batch and "
            f"{by_width:.3f} for the width; {self.schedule}, warm-up {self.warmup_steps} steps"
        )

    def peak(self, lr: float | None) -> float:
        """A group's own peak rate, or `lr` where it has none."""
        return self.lr if lr is None else lr

    def in_steps(self, steps_per_epoch: float) -> "OptimConfig":
        """The configuration with changes at epochs as changes at steps."""
        resolved = {
            name: in_steps(f"optim.{name}", getattr(self, name), steps_per_epoch)
            for name in ("weight_decay_steps", "matrix_weight_decay_steps")
        }
        return replace(self, **resolved)

    def check(self, steps: int) -> None:
        """Raises ConfigError where the warm-up is longer than a run of `steps` steps, or a change
        of weight decay cannot be read or has no effect."""
        read_changes("optim.weight_decay_steps", self.weight_decay_steps)
        read_changes("optim.matrix_weight_decay_steps", self.matrix_weight_decay_steps)
        if self.name != "muon" and self.matrix_weight_decay_steps:
            raise ConfigError(
                "optim.matrix_weight_decay_steps is of muon, optim.name is adamw",
                "use --optim.weight-decay-steps",
            )
        if self.warmup_steps > steps:
            raise ConfigError(
                f"optim.warmup_steps is {self.warmup_steps}, the run has only {steps} steps",
                "lower it or train longer",
            )


def schedule(config: OptimConfig, steps: int) -> Callable[[Any], Any]:
    """Share of the peak learning rate at a step counted from 0, for a run of `steps` steps."""
    warmup, floor = config.warmup_steps, config.final_lr_fraction
    decay_steps = {
        "cosine": max(1, steps - warmup),
        "wsd": max(1, round(config.decay_fraction * steps)),
        "constant": 1,
    }[config.schedule]

    def share(step):
        step = jnp.asarray(step, jnp.float32)
        rising = jnp.minimum(1.0, (step + 1) / max(1, warmup))
        left = jnp.clip((steps - 1 - step) / decay_steps, 0.0, 1.0)  # 0 at the last step
        if config.schedule == "constant":
            return rising
        if config.schedule == "cosine":
            left = 0.5 * (1 - jnp.cos(jnp.pi * left))
        return rising * (floor + (1 - floor) * left)

    return share


def make_optimizer(config: OptimConfig, steps: int, roles: Any) -> optax.GradientTransformation:
    """The whole update rule: clip, then each group's own optimizer and schedule.

    Args:
        config: with the rates of this batch and width.
        steps: of the run, for the schedules.
        roles: the tree of parameters with the role of each (`gaia.params.roles`).
    """
    share = schedule(config, steps)

    weight_decay, matrix_weight_decay = (
        stepwise(getattr(config, name), getattr(config, f"{name}_steps"), f"optim.{name}_steps")
        for name in ("weight_decay", "matrix_weight_decay")
    )

    def adamw(peak: float, decay: Decay) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(config.beta1, config.beta2, config.eps),
            optax.add_decayed_weights(decay) if decay else optax.identity(),
            optax.scale_by_schedule(lambda step: -peak * share(step)),
        )

    def muon() -> optax.GradientTransformation:
        decay = matrix_weight_decay
        return optax.chain(
            scale_by_muon(config.momentum, config.newton_schulz_steps, config.newton_schulz_dtype),
            optax.add_decayed_weights(decay) if decay else optax.identity(),
            optax.scale_by_schedule(lambda step: -config.matrix_lr * share(step)),
        )

    groups: dict[Hashable, optax.GradientTransformation] = {
        "matrix": muon() if config.name == "muon" else adamw(config.lr, weight_decay),
        "embed": adamw(config.peak(config.embed_lr), 0.0),
        "head": adamw(config.peak(config.head_lr), weight_decay),
        "gain": adamw(config.lr, 0.0),
        "adapter": adamw(config.lr, weight_decay),
    }
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.partition(groups, roles))


class MuonState(NamedTuple):
    """Momentum of each matrix, fp32."""

    momentum: Any


# Quintic coefficients by iteration that take every singular value in [1e-3, 1] to 1 within
# bf16 precision (Polar Express: Amsel et al. 2025, algorithm 1 and its table, safety 1.02).
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(g: jax.Array, steps: int, dtype: str = "float32") -> jax.Array:
    """The nearest semi-orthogonal matrix to each matrix [..., in, out] of `g`, approximately.

    Singular values end within about 0.7 .. 1.2 of 1 (bf16 or fp32 alike). Source: Jordan et al.
    2024 (Muon) with the coefficients of Polar Express.
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

    coefficients = [_POLAR_EXPRESS[min(i, len(_POLAR_EXPRESS) - 1)] for i in range(steps)]
    if parallel.size(*parallel.AXES) == 1:
        for abc in coefficients:
            x, _ = step(x, abc)
    else:  # one iteration to compile for each stack of matrices, not all of them
        x, _ = jax.lax.scan(step, x, jnp.asarray(coefficients, dtype))
    return (x.mT if tall else x).astype(jnp.float32)


def scale_by_muon(
    momentum: float, newton_schulz_steps: int, newton_schulz_dtype: str
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized, scaled by sqrt(max(1, out/in)) (Jordan et al. 2024).

    Leaves are [layers, in, out], each layer a matrix of its own. On a mesh the iterations are
    shared out over the devices, layer by layer (`parallel.by_layer`).
    """

    def orthogonal(g_LIO: jax.Array) -> jax.Array:
        return orthogonalize(g_LIO, newton_schulz_steps, newton_schulz_dtype).astype(g_LIO.dtype)

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        grads = updates
        average = jax.tree.map(
            lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, grads
        )

        def step(m, g):
            nesterov = momentum * m + (1 - momentum) * g
            scale = max(1.0, g.shape[-1] / g.shape[-2]) ** 0.5
            # Cast first: half the bytes travel, and the iterations would cast anyway.
            nesterov = nesterov.astype(newton_schulz_dtype)
            with jax.named_scope("muon"):
                return scale * parallel.by_layer(orthogonal, nesterov).astype(jnp.float32)

        return jax.tree.map(step, average, grads), MuonState(average)

    return optax.GradientTransformation(init, update)

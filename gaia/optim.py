"""Optimizers and schedules: AdamW, and Muon (`gaia.muon`) for the matrices inside the blocks.

A parameter belongs to one of five groups by the role it is born with (`gaia.params`): `matrix`
(kernels of the stacked blocks), `embed` (tables), `head` (the output kernel), `adapter` (low-rank
adapters, always AdamW) and `gain` (all else). Weight decay is decoupled; unless told otherwise it
touches matrices only: block matrices, the head and adapters.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaia.batch_ramp import BatchRamp
from gaia.errors import ConfigError
from gaia.muon import Iteration, Muon, scale_by_muon
from gaia.step_ranges import check_changes, in_steps, read_changes, stepwise

Decay = float | Callable[[Any], Any]

_NO_RAMP = BatchRamp()
_CHANGES = ("weight_decay_steps", "matrix_weight_decay_steps")


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
    gain_lr: float | None = None
    """Peak learning rate of gains and all else that is no matrix or table; lr when left out."""
    matrix_lr: float = 0.02
    """Peak Muon learning rate of block matrices."""
    beta1: float = 0.9
    """AdamW first-moment decay."""
    beta2: float = 0.95
    """AdamW second-moment decay."""
    embed_betas: tuple[float, float] | None = None
    """AdamW decays of embedding tables; beta1 and beta2 when left out."""
    head_betas: tuple[float, float] | None = None
    """AdamW decays of the output head; beta1 and beta2 when left out."""
    eps: float = 1e-10
    """AdamW epsilon; gradients are means over many tokens, so second moments are tiny."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices under AdamW, times the learning rate."""
    embed_weight_decay: float = 0.0
    """Decoupled decay of embedding tables, times their learning rate."""
    matrix_weight_decay: float = 0.0
    """Decoupled decay of block matrices under Muon, times the learning rate."""
    weight_decay_steps: tuple[str, ...] = ()
    """Changes of weight_decay, each its value from a step or epoch on: 0.05@2epochs 0.01@9000."""
    matrix_weight_decay_steps: tuple[str, ...] = ()
    """The same for matrix_weight_decay."""
    decay_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of all weight decays over the run: as they are, or falling to 0 at the last step."""
    cautious_decay: bool = False
    """Decay block matrices under Muon only where the update shrinks them, too."""
    momentum: float = 0.95
    """Muon's Nesterov momentum."""
    momentum_start: float | None = None
    """Muon's momentum at the first step, rising linearly; momentum from the start when left out."""
    momentum_warmup_steps: int = 300
    """Steps over which momentum_start rises to momentum."""
    momentum_final: float | None = None
    """Muon's momentum at the last step, reached linearly over decay_fraction of the steps; momentum
    when left out."""
    normuon_beta2: float = 0.0
    """Decay of the mean squares by which NorMuon evens out the neurons of a Muon update; 0 is
    off."""
    muon_equilibrate: bool = False
    """Scale the columns of a Muon update to one norm before it is orthogonalized (MuonEq)."""
    muon_renormalize: bool = False
    """Give each Muon update the norm of an exactly orthogonal one (Muon+)."""
    newton_schulz: Iteration = "polar_express"
    """Polynomials that orthogonalize a Muon update: Polar Express, or Muon's first quintic."""
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
    """Share of all steps that wsd spends decaying, and momentum_final falling."""
    final_lr_fraction: float = 0.05
    """Learning rate at the last step, as a share of the peak."""
    batch_reference: int | None = None
    """Tokens per step the rates above are meant for; others scale them by a square root."""
    decay_rule: Literal["given", "horizon"] = "given"
    """Scaling of matrix_weight_decay: given takes it as it is; horizon keeps what a whole run
    decays, whatever its batch (against batch_reference) and its tokens (against those of depth 12
    at as many per parameter)."""
    width_reference: int | None = None
    """Model width the AdamW rates are meant for; others scale them as width_rule says."""
    width_rule: Literal["root", "mup"] = "root"
    """Scaling of the AdamW rates with the width: root takes its inverse root for all groups; mup
    its inverse for matrices and the head alone, so that the best rates are those of the reference
    width."""

    def scaled(
        self, batch_tokens: int, dim: int, *, shorter: float = 1.0, tied: bool = False
    ) -> tuple["OptimConfig", str]:
        """Learning rates for this batch and width, and a sentence that says what was done.

        Sources: inverse roots as in nanochat; mup is Yang et al. 2022, table 8, with the decay of
        Dey et al. 2025 (CompleteP). Muon's updates have one operator norm at every width, so
        their rate needs no scaling. AdamW's epsilon is so small that it needs none either.
        decay_rule horizon is nanochat's: with rates that follow the root of the batch B, it keeps
        T_epoch = B / (rate * decay * tokens) (Wang & Aitchison 2024, arXiv 2405.13698).

        Args:
            batch_tokens: tokens of a step.
            dim: the model's width.
            shorter: tokens of the run that the decay is meant for, over those of this one.
            tied: the embedding is the head, and has its rate.

        Raises:
            ConfigError: a rule has nothing to scale from, or does not go with a change of decay.
        """
        batch, width = self.batch_reference, self.width_reference
        by_batch = 1.0 if batch is None else (batch_tokens / batch) ** 0.5
        narrower = 1.0 if width is None else width / dim
        mup, muon = self.width_rule == "mup", self.name == "muon"
        horizon = muon and self.decay_rule == "horizon"
        self._check_rules()
        by_width = narrower if mup else narrower**0.5  # of what multiplies activations
        others = by_batch * (1.0 if mup else by_width)
        gain_lr = self.peak(self.gain_lr) if mup else self.gain_lr
        result = replace(
            self,
            lr=self.lr * (others if muon else by_batch * by_width),
            embed_lr=self.peak(self.embed_lr) * others,
            head_lr=self.peak(self.head_lr) * by_batch * by_width,
            gain_lr=None if gain_lr is None else gain_lr * others,
            matrix_lr=self.matrix_lr * by_batch,
            matrix_weight_decay=self.matrix_weight_decay * (by_batch * shorter if horizon else 1.0),
            # Decay is times the rate: under mup their product stays as it is.
            weight_decay=self.weight_decay / (narrower if mup else 1.0),
            batch_reference=None,
            width_reference=None,
            width_rule="root",
            decay_rule="given",
        )
        table = "tied table" if tied else f"embedding {result.embed_lr:.3g}, head"
        matrix = f", matrices {result.matrix_lr:.3g} (muon)" if muon else ""
        decay = f", decay {result.matrix_weight_decay:.3g} by its horizon" if horizon else ""
        return result, (
            f"optimizer: {self.name}, lr {result.lr:.3g}, {table} {result.head_lr:.3g}{matrix}"
            f"{decay}; scaled by {by_batch:.3f} for the batch and {by_width:.3f} for the width"
            f"{' (mup)' if mup else ''}; {self.schedule}, warm-up {self.warmup_steps} steps"
        )

    def _check_rules(self) -> None:
        """Raises ConfigError for a rule of scaling without what it needs."""
        for rule, reference, changes, other in (
            ("width_rule mup", "width_reference", "weight_decay_steps", "root"),
            ("decay_rule horizon", "batch_reference", "matrix_weight_decay_steps", "given"),
        ):
            name, _, value = rule.partition(" ")
            if getattr(self, name) != value:
                continue
            if getattr(self, reference) is None:
                raise ConfigError(
                    f"optim.{name} is {value} without optim.{reference}",
                    f"give the {reference.partition('_')[0]} that the rates are meant for",
                )
            if getattr(self, changes):
                raise ConfigError(
                    f"optim.{changes} does not go with optim.{rule}",
                    f"use --optim.decay-schedule, or --optim.{name.replace('_', '-')} {other}",
                )

    def peak(self, lr: float | None) -> float:
        """A group's own peak rate, or `lr` where it has none."""
        return self.lr if lr is None else lr

    def in_steps(self, steps_per_epoch: float, steps: int) -> tuple["OptimConfig", list[str]]:
        """The configuration with changes at epochs as changes at steps, and a sentence for each
        that a run of `steps` steps does not reach: it is left out."""
        resolved: dict[str, tuple[str, ...]] = {}
        said: list[str] = []
        for name in _CHANGES:
            texts = getattr(self, name)
            kept = in_steps(f"optim.{name}", texts, steps_per_epoch)
            starts = [change.at for change in read_changes(f"optim.{name}", kept)]
            said += [
                f"optim.{name}: {text} is step {start:.0f} of {steps}, and left out"
                for text, start in zip(texts, starts, strict=True)
                if start >= steps
            ]
            resolved[name] = tuple(t for t, at in zip(kept, starts, strict=True) if at < steps)
        return replace(self, **resolved), said

    def repeated(self, times: int) -> "OptimConfig":
        """The same by updates, where each of a run's steps has so many; nothing is in epochs."""
        longer: dict[str, Any] = {
            name: tuple(
                f"{change.value:.17g}@{change.at * times:.0f}"
                for change in read_changes(f"optim.{name}", getattr(self, name))
            )
            for name in _CHANGES
        }
        for name in ("warmup_steps", "momentum_warmup_steps"):
            longer[name] = getattr(self, name) * times
        return replace(self, **longer)

    def check(self, steps: int) -> None:
        """Raises ConfigError where the warm-up is longer than a run of `steps` steps, or a change
        of weight decay cannot be read or has no effect."""
        for name in _CHANGES:
            check_changes(f"optim.{name}", getattr(self, name), steps)
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


ONLY_MUON = (
    "matrix_lr", "matrix_weight_decay", "decay_rule", "momentum", "momentum_start",
    "momentum_warmup_steps", "momentum_final", "cautious_decay", "normuon_beta2",
    "muon_equilibrate", "muon_renormalize", "newton_schulz", "newton_schulz_steps",
    "newton_schulz_dtype",
)  # fmt: skip
"""Options that are without effect under AdamW."""
ONLY_UNTIED = ("embed_lr", "embed_betas", "embed_weight_decay")
"""Options that are without effect where the embedding is the head, whose own it has."""


def schedule(config: OptimConfig, steps: int) -> Callable[[Any], Any]:
    """Share of the peak learning rate at a step counted from 0, for a run of `steps` steps."""
    warmup, floor = config.warmup_steps, config.final_lr_fraction
    decay_steps = {"cosine": max(1, steps - warmup), "constant": 1}.get(config.schedule)

    def share(step):
        step = jnp.asarray(step, jnp.float32)
        rising = jnp.minimum(1.0, (step + 1) / max(1, warmup))
        if config.schedule == "constant":
            return rising
        if decay_steps is None:
            return rising * (floor + (1 - floor) * _left(config, steps, step))
        left = jnp.clip((steps - 1 - step) / decay_steps, 0.0, 1.0)  # 0 at the last step
        return rising * (floor + (1 - floor) * 0.5 * (1 - jnp.cos(jnp.pi * left)))

    return share


def _left(config: OptimConfig, steps: int, step: Any) -> jax.Array:
    """1, then falling linearly over decay_fraction of the steps to 0 at the last one."""
    decay_steps = max(1, round(config.decay_fraction * steps))
    return jnp.clip((steps - 1 - jnp.asarray(step, jnp.float32)) / decay_steps, 0.0, 1.0)


def make_optimizer(
    config: OptimConfig, steps: int, roles: Any, ramp: BatchRamp = _NO_RAMP
) -> optax.GradientTransformation:
    """The whole update rule: clip, then each group's own optimizer and schedule.

    Args:
        config: with the rates of this batch and width.
        steps: of the run, for the schedules.
        roles: the tree of parameters with the role of each (`gaia.params.roles`).
        ramp: of the batch, whose steps may be several updates.
    """
    share = schedule(config, steps)

    def decay_of(name: str) -> Decay:
        texts = getattr(config, f"{name}_steps")
        value = stepwise(getattr(config, name), texts, f"optim.{name}_steps")
        return (lambda update: value(ramp.step_of(update))) if callable(value) else value

    weight_decay, matrix_weight_decay = decay_of("weight_decay"), decay_of("matrix_weight_decay")

    def by_rate(peak: float) -> optax.GradientTransformation:
        return optax.scale_by_schedule(
            lambda update: -peak * share(ramp.step_of(update)) * ramp.rate_of(update)
        )

    def adamw(
        peak: float, decay: Decay, betas: tuple[float, float] | None = None
    ) -> optax.GradientTransformation:
        beta1, beta2 = betas or (config.beta1, config.beta2)
        adam = optax.scale_by_adam(beta1, beta2, config.eps)
        return optax.chain(adam, _decay(config, steps, decay, ramp), by_rate(peak))

    def muon() -> optax.GradientTransformation:
        decay = _decay(config, steps, matrix_weight_decay, ramp, cautious=config.cautious_decay)
        rule = scale_by_muon(_muon(config, steps, ramp))
        return optax.chain(rule, decay, by_rate(config.matrix_lr))

    embed_lr, head_lr = config.peak(config.embed_lr), config.peak(config.head_lr)
    groups: dict[Hashable, optax.GradientTransformation] = {
        "matrix": muon() if config.name == "muon" else adamw(config.lr, weight_decay),
        "embed": adamw(embed_lr, config.embed_weight_decay, config.embed_betas),
        "head": adamw(head_lr, weight_decay, config.head_betas),
        "gain": adamw(config.peak(config.gain_lr), 0.0),
        "adapter": adamw(config.lr, weight_decay),
    }
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.partition(groups, roles))


def _muon(config: OptimConfig, steps: int, ramp: BatchRamp) -> Muon:
    """The rule of Muon that the options describe, for a run of `steps` steps."""
    peak, start, final = config.momentum, config.momentum_start, config.momentum_final

    def momentum(update: jax.Array) -> jax.Array:
        step = jnp.asarray(ramp.step_of(update), jnp.float32)
        value = jnp.asarray(peak, jnp.float32)
        if start is not None:
            rising = jnp.clip(step / max(1, config.momentum_warmup_steps), 0.0, 1.0)
            value = start + (peak - start) * rising
        if final is not None:
            value = final + (value - final) * _left(config, steps, step)
        return value

    return Muon(
        momentum=peak if start is None and final is None else momentum,
        steps=config.newton_schulz_steps,
        dtype=config.newton_schulz_dtype,
        iteration=config.newton_schulz,
        equilibrate=config.muon_equilibrate,
        renormalize=config.muon_renormalize,
        normuon_beta2=config.normuon_beta2,
    )


class _DecayState(NamedTuple):
    """Updates so far, int32."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def _decay(
    config: OptimConfig, steps: int, strength: Decay, ramp: BatchRamp, *, cautious: bool = False
) -> optax.GradientTransformation:
    """Decoupled weight decay, times the learning rate that follows it.

    Args:
        config: says how the decay changes over the run.
        steps: of the run.
        strength: at the first step, or as a function of finished updates.
        ramp: of the batch.
        cautious: decay an element only where its update points to 0 as well (Liang et al. 2024;
            arXiv 2510.12402).
    """
    if not strength:
        return optax.identity()
    if config.decay_schedule == "constant" and not cautious:
        return optax.add_decayed_weights(strength)

    def at(count: jax.Array) -> jax.Array:
        peak = strength(count) if callable(strength) else strength
        done = jnp.asarray(ramp.step_of(count), jnp.float32) / max(1, steps - 1)
        if config.decay_schedule == "cosine":
            return peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        linear = config.decay_schedule == "linear"
        return peak * (1 - jnp.clip(done, 0, 1) if linear else jnp.ones(()))

    def update(updates, state, params=None):
        now = at(state.count)

        def one(u, p):
            decayed = now * p
            return u + (jnp.where(u * p >= 0, decayed, 0.0) if cautious else decayed)

        return jax.tree.map(one, updates, params), _DecayState(state.count + 1)

    def init(params):
        del params
        return _DecayState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)

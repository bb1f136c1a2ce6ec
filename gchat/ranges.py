"""Ranges of every number that a training run can be told, in one table."""

import math
from dataclasses import dataclass
from typing import Any

from gaia.config import flatten, to_dict
from gaia.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers; `open_low` and `open_high` leave an end out."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Tells whether a number lies in it; NaN and infinities never do."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def remedy(self) -> str:
        """Says in words what to use."""
        if self.high == math.inf:
            text = "a number above {:g}" if self.open_low else "{:g} or more"
            return f"use {text.format(self.low)}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"use a number in {left}{self.low:g}, {self.high:.10g}{right}"


MAX_SEED = 2**32 - 1

_COUNT, _SOME = Range(1), Range(0)
_ABOVE, _SHARE = Range(0, open_low=True), Range(0, 1)
_DECAY = Range(0, 1, open_high=True)

RANGES = {
    **{
        f"model.{name}": _COUNT
        for name in (
            "depth", "aspect_ratio", "head_dim", "dim", "heads", "kv_heads", "hidden", "vocab_size",
            "padded_vocab_size", "seq_len", "window", "scan_unroll",
        )
    },
    "model.rope_theta": Range(1, open_low=True),
    "model.rope_factors": _ABOVE,
    "model.dropout": _DECAY,
    "model.norm_eps": _ABOVE,
    "model.lora_rank": _SOME,
    "model.lora_alpha": _ABOVE,
    "stage.epochs": _ABOVE,
    "stage.base_step": _SOME,
    "optim.lr": _ABOVE,
    "optim.embed_lr": _SOME,
    "optim.head_lr": _SOME,
    "optim.gain_lr": _SOME,
    "optim.matrix_lr": _ABOVE,
    "optim.beta1": _DECAY,
    "optim.beta2": _DECAY,
    "optim.embed_betas": _DECAY,
    "optim.head_betas": _DECAY,
    "optim.eps": _ABOVE,
    "optim.weight_decay": _SOME,
    "optim.embed_weight_decay": _SOME,
    "optim.matrix_weight_decay": _SOME,
    "optim.momentum": _DECAY,
    "optim.momentum_start": _DECAY,
    "optim.momentum_warmup_steps": _COUNT,
    "optim.momentum_final": _DECAY,
    "optim.normuon_beta2": _DECAY,
    "optim.newton_schulz_steps": _COUNT,
    "optim.clip_norm": _SOME,
    "optim.warmup_steps": _SOME,
    "optim.decay_fraction": Range(0, 1, open_low=True),
    "optim.final_lr_fraction": _SHARE,
    "optim.batch_reference": _COUNT,
    "optim.width_reference": _COUNT,
    "data.shards": _COUNT,
    "data.vocab_size": Range(257),
    "data.weights": _ABOVE,
    "data.window": _COUNT,
    "data.cache_gib": _SOME,
    "data.patience_minutes": _SOME,
    "training.batch_size": _COUNT,
    "training.grad_accum": _COUNT,
    "training.steps": _COUNT,
    "training.tokens": _COUNT,
    "training.tokens_per_param": _ABOVE,
    # A key of jax.random takes 32 bits: larger seeds would repeat the runs of smaller ones.
    "training.seed": Range(0, MAX_SEED),
    "training.loss_chunk": _COUNT,
    **{f"mesh.{axis}": Range(-1) for axis in ("replica", "fsdp", "tensor", "sequence")},
    "checkpoint.every_steps": _SOME,
    "checkpoint.every_minutes": _SOME,
    "checkpoint.keep": Range(2),  # a new one counts only once it is sealed: one is not enough
    "checkpoint.keep_every": _SOME,
    "eval.every_steps": _SOME,
    "eval.tokens": _COUNT,
    "eval.stride_fraction": Range(0, 1, open_low=True),
    "eval.sample_every": _SOME,
    "eval.sample_tokens": _COUNT,
    "eval.core_every_steps": _SOME,
    "eval.core_max_per_task": _COUNT,
    "eval.chat_every_steps": _SOME,
    "eval.chat_max_per_task": _COUNT,
    "eval.chat_max_written": _COUNT,
    "eval.chat_max_tokens": _COUNT,
    "run.log_interval": _COUNT,
    "run.in_flight": _SOME,
    "run.price_per_hour": _SOME,
    "run.picture_seconds": _SOME,
    "run.target_bpb": _ABOVE,
    "run.target_core": Range(-1, 1),
    "guards.spike_factor": _SOME,
    "guards.spike_window": Range(8),
    "guards.max_rollbacks": _SOME,
    "guards.max_skips": _SOME,
    "guards.hang_minutes": _SOME,
    "dpo.beta": _ABOVE,
    "dpo.label_smoothing": Range(0, 0.5, open_high=True),
    "dpo.held_out": _SOME,
    "rl.reward_seconds": _ABOVE,
    "rl.prompts": _COUNT,
    "rl.samples": _COUNT,
    "rl.max_new_tokens": _COUNT,
    "rl.temperature": _SOME,
    "rl.clip_low": _SHARE,
    "rl.clip_high": _SOME,
    "rl.kl": _SOME,
    "rl.passes": _COUNT,
    "rl.correction_cap": _ABOVE,
    "rl.slots": _COUNT,
    "rl.held_out": _SOME,
    "rl.stall_steps": _COUNT,
}  # fmt: skip
"""Fields of TrainConfig that hold numbers, with what each may be; None is always "derived"."""


def check_ranges(config: Any, group: str = "") -> None:
    """Raises ConfigError for the first number that lies outside of its range.

    Args:
        config: a TrainConfig, or one of its groups.
        group: name of that group, with a dot behind it.
    """
    for name, value in flatten(to_dict(config), group).items():
        field = name if name in RANGES else name.rpartition(".")[0]  # of a dictionary of numbers
        for number in value if isinstance(value, list) else (value,):
            known = field in RANGES and isinstance(number, int | float)
            if known and not RANGES[field].holds(number):
                raise ConfigError(f"{name} is {number}", RANGES[field].remedy())

"""A simple estimate of memory, time and cost, from sizes and one rate; no compiler is asked.

Time is FLOPs over (peak rate x an assumed utilisation). The utilisations are what this code or
its peers were measured to reach (EXPERIMENTS.md); a run prints its real one.
"""

from dataclasses import dataclass

from gaia.runtime import Machine
from gchat.config import TrainConfig
from gchat.model import GPTConfig, flops_per_token, matmul_params

# Share of the peak that a training step is assumed to reach, by platform. CPU: of a large matrix
# product timed on the same machine. TPU and GPU: of the maker's dense bf16 peak.
ASSUMED_MFU = {"cpu": 0.42, "tpu": 0.35, "gpu": 0.40}

# Work beside training steps (start, compilation, evaluation, samples, report), written as FLOPs
# so that it shrinks and grows with the machine.
CPU_OVERHEAD_FLOPS = 4e12
ACCELERATOR_OVERHEAD_SECONDS = 240.0


@dataclass(frozen=True)
class Estimate:
    """What a derived configuration asks of a machine."""

    params: int
    tokens: int
    flops: float
    seconds: float
    """Training steps alone."""
    memory_bytes: int
    """Parameters, gradients, AdamW moments, activations and logits, on each device."""


def all_params(config: GPTConfig) -> int:
    """Every parameter, embeddings and norm gains included."""
    s = config.sizes
    embedding = 0 if config.tied else s.padded_vocab * s.dim
    positions = config.seq_len * s.dim if config.positions == "learned" else 0
    gains = config.depth * (2 * s.dim + (2 * config.head_dim if config.qk_norm else 0)) + s.dim
    return matmul_params(config) + embedding + positions + gains


def estimate(config: TrainConfig, machine: Machine, peak: float) -> Estimate:
    """Estimates a derived configuration on this machine.

    Args:
        config: derived.
        machine: whose devices each hold all parameters and a share of the rows.
        peak: FLOP/s of all devices together.
    """
    model, t = config.model, config.training
    tokens, params = t.tokens or 0, all_params(config.model)
    flops = flops_per_token(model) * tokens
    rate = peak * ASSUMED_MFU[machine.platform]
    rows = -(-(t.batch_size or 1) // t.grad_accum // machine.devices)
    return Estimate(
        params, tokens, flops, flops / rate, 16 * params + _activation_bytes(config, rows)
    )


def _activation_bytes(config: TrainConfig, rows: int) -> int:
    """What the backward pass finds saved, for `rows` rows on a device, plus one chunk of logits."""
    model = config.model
    s, tokens = model.sizes, rows * model.seq_len
    size = 2 if model.compute_dtype == "bfloat16" else 4
    # Per token and layer: two residuals and two normed inputs, q, k, v, o, and three of hidden.
    saved = {
        "none": 4 * s.dim + 2 * model.head_dim * (s.heads + s.kv_heads) + 3 * s.hidden,
        "dots": 2 * s.dim + 2 * model.head_dim * (s.heads + s.kv_heads) + 2 * s.hidden,
        "full": s.dim,
    }[model.remat]
    logits = 3 * 4 * min(config.training.loss_chunk, tokens) * s.padded_vocab
    return tokens * model.depth * saved * size + logits


def tokens_within(model: GPTConfig, machine: Machine, peak: float, seconds: float) -> int:
    """Training tokens that fit into `seconds` of training steps."""
    return int(seconds * peak * ASSUMED_MFU[machine.platform] / flops_per_token(model))


def overhead_seconds(machine: Machine, peak: float) -> float:
    """Seconds of the whole command that are no training steps."""
    if machine.platform == "cpu":
        return CPU_OVERHEAD_FLOPS / peak
    return ACCELERATOR_OVERHEAD_SECONDS

"""The speedrun's expectations of the machine it is on.

Accelerators: the plan of `gchat plan` (roofline, memory by part). CPUs: FLOPs over (a rate measured
here and now x an assumed utilisation); a run prints its real one.
"""

from dataclasses import dataclass

from gaia.errors import ConfigError
from gaia.runtime import Machine
from gchat.config import TrainConfig
from gchat.model import GPTConfig
from gchat.model_shape import all_params, flops_per_token
from gchat.scaling.plan import make_plan
from gchat.scaling.search import best, fit_hint
from gchat.scaling.sku import fleet_of_machine

# Share of the peak that a training step is assumed to reach where there is no roofline. CPU: of a
# large matrix product timed on the same machine (EXPERIMENTS.md). Others: of the dense bf16 peak.
ASSUMED_MFU = {"cpu": 0.42, "tpu": 0.35, "gpu": 0.40}

# Work beside training steps (start, compilation, evaluation, samples, report), written as FLOPs
# so that it shrinks and grows with the machine.
CPU_OVERHEAD_FLOPS = 4e12
ACCELERATOR_OVERHEAD_SECONDS = 240.0


@dataclass(frozen=True)
class Estimate:
    """Demands of a derived configuration on a machine."""

    params: int
    tokens: int
    flops: float
    seconds: float
    """Training steps alone."""
    memory_bytes: int
    """Parameters, gradients, optimizer state, activations and logits, on each device."""


def estimate(config: TrainConfig, machine: Machine, peak: float) -> Estimate:
    """Estimates a derived configuration on this machine.

    Args:
        config: derived.
        machine: where it would run.
        peak: FLOP/s of all devices together; used where the chip is not one we know.

    Raises:
        ConfigError: its mesh does not fit the machine.
    """
    t = config.training
    tokens, params = t.amounts.tokens, all_params(config.model)
    flops = flops_per_token(config.model) * tokens
    fleet = fleet_of_machine(machine)
    if fleet is not None:
        plan = make_plan(config, fleet)
        return Estimate(params, tokens, flops, plan.seconds, plan.memory.total)
    rate = peak * ASSUMED_MFU[machine.platform]
    rows = -(-t.amounts.batch_size // t.grad_accum // machine.devices)
    return Estimate(
        params, tokens, flops, flops / rate, 16 * params + _activation_bytes(config, rows)
    )


def placed(config: TrainConfig, machine: Machine) -> TrainConfig:
    """The derived configuration with the micro-batches and rematerialisation that fit the machine.

    Unchanged where it is estimated to fit as it is, and on machines we know nothing about.

    Raises:
        ConfigError: nothing of it fits, with what would.
    """
    fleet = fleet_of_machine(machine)
    if fleet is None or make_plan(config, fleet).fits:
        return config
    fitting = best(config, fleet, fixed_mesh=True)
    if fitting is None:
        raise ConfigError(
            f"model.depth {config.model.depth} does not fit {fleet.name}", fit_hint(config, machine)
        )
    return fitting.config


def _activation_bytes(config: TrainConfig, rows: int) -> int:
    """Bytes saved for the backward pass of `rows` rows on a device, plus one chunk of logits."""
    model = config.model
    s, tokens = model.sizes, rows * model.seq_len
    size = 2 if model.compute_dtype == "bfloat16" else 4
    # Per token and layer: two residuals and two normed inputs, q, k, v, o, and three of hidden.
    saved = {
        "none": 4 * s.dim + 2 * model.head_dim * (s.heads + s.kv_heads) + 3 * s.hidden,
        "dots": 2 * s.dim + 2 * model.head_dim * (s.heads + s.kv_heads) + 2 * s.hidden,
    }.get(model.remat, s.dim)
    logits = 3 * 4 * min(config.training.loss_chunk, tokens) * s.padded_vocab
    return tokens * model.depth * saved * size + logits


def tokens_within(model: GPTConfig, machine: Machine, peak: float, seconds: float) -> int:
    """Training tokens that fit into `seconds` of training steps, by an assumed utilisation."""
    return int(seconds * peak * ASSUMED_MFU[machine.platform] / flops_per_token(model))


def overhead_seconds(machine: Machine, peak: float) -> float:
    """Seconds of the whole command that are no training steps."""
    if machine.platform == "cpu":
        return CPU_OVERHEAD_FLOPS / peak
    return ACCELERATOR_OVERHEAD_SECONDS

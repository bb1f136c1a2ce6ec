"""The plan of a run on a fleet: what it holds, how fast it goes, when it ends and what it costs."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from gaia.hardware import dated
from gaia.step_ranges import read_changes
from gchat.config import TrainConfig, derive
from gchat.model_shape import all_params, flops_per_token
from gchat.scaling.layout import Layout, layout_of, rows_of_device
from gchat.scaling.memory import Memory, estimate_memory
from gchat.scaling.roofline import UNKNOWN_DCN, StepTime, step_time
from gchat.scaling.sku import Fleet
from gchat.scaling.structure import calibrated
from gchat.scaling.verify import Compiled
from gchat.tokenizer import Tokenizer

GPT2_VOCAB = (50_273, 50_304)
"""GPT-2's ids in use with the chat specials, and padded."""
GPU_NOTE = "GPU: every figure is an estimate; no compiler was asked and none was fitted to"


@dataclass(frozen=True)
class Plan:
    """A derived configuration on a fleet."""

    config: TrainConfig
    fleet: Fleet
    layout: Layout
    memory: Memory
    time: StepTime
    compiled: Compiled | None = None
    """The compiler's answer, where it was asked; it outranks `memory`."""

    @property
    def peak_bytes(self) -> int:
        """Peak memory of one device: the compiler's where it was asked, else estimated."""
        return self.compiled.peak_bytes if self.compiled else self.memory.total

    @property
    def limit_bytes(self) -> int:
        """Memory that a program may use of one device."""
        known = self.compiled.limit_bytes if self.compiled else 0
        return max(0, known - self.fleet.left_bytes) if known else self.fleet.limit_bytes

    @property
    def fits(self) -> bool:
        """True where the step fits into that memory."""
        return self.peak_bytes <= self.limit_bytes and (not self.compiled or self.compiled.fits)

    @property
    def why(self) -> str:
        """One sentence on whether it fits and what decides."""
        source = "the compiler's number" if self.compiled else "estimate"
        if self.compiled and self.compiled.evaluation_bytes:
            source += f"; an evaluation takes {_gib(self.compiled.evaluation_bytes)}"
        sizes = f"{_gib(self.peak_bytes)} of {_gib(self.limit_bytes)} per device ({source})"
        if self.fits:
            return f"fits: {sizes}"
        if self.compiled:
            return f"does not fit: {sizes}"
        parts = {k: v for k, v in asdict(self.memory).items()}
        largest = max(parts, key=lambda name: parts[name])
        return f"does not fit: {sizes}; most of it is {largest}, {_gib(parts[largest])}"

    @property
    def seconds(self) -> float:
        """All training steps."""
        return self.time.seconds * self.config.training.amounts.steps

    def cost_usd(self, *, spot: bool = False) -> float | None:
        """Training steps at list price; None where none is known."""
        price = self.fleet.price_per_hour(spot=spot)
        return None if price is None else price * self.seconds / 3600

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader must know beside the figures."""
        said = []
        if not self.fleet.is_tpu:
            said.append(GPU_NOTE)
        if not calibrated(self.config.model):
            said.append(
                "memory is not calibrated for this block: activations are a guess; --verify asks "
                "the compiler"
            )
        if self.fleet.slices > 1 and not self.fleet.chip.dcn_bandwidth:
            said.append(
                f"the network between slices of {self.fleet.chip.name} is not known: "
                f"{UNKNOWN_DCN / 1e9:g} GB/s per chip is assumed"
            )
        if self.config.model.remat == "offload":
            said.append("remat offload: the time to send activations to the host is not counted")
        if self.fleet.price_per_hour() is None and not self.fleet.chip.owned:
            said.append(f"no list price of {self.fleet.chip.name} is known")
        if self.fleet.left_bytes and not self.fleet.is_tpu:
            share = self.limit_bytes / self.fleet.chip.hbm_per_device
            said.append(
                f"JAX leaves it free with XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f} in the "
                "environment of the run"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain types; bytes, seconds and US dollars."""
        training, model = self.config.training, self.config.model
        return {
            "sku": self.fleet.name,
            "chip": self.fleet.chip.key,
            "chips": self.fleet.chips,
            "devices": self.fleet.devices,
            "params": all_params(model),
            "flops_per_token": flops_per_token(model),
            "batch_size": training.batch_size,
            "seq_len": model.seq_len,
            "rows_per_device": rows_of_device(self.config, self.layout),
            "grad_accum": training.grad_accum,
            "remat": model.remat,
            "mesh": asdict(self.layout),
            "hbm": asdict(self.memory) | {"total": self.memory.total},
            "peak_bytes": self.peak_bytes,
            "limit_bytes": self.limit_bytes,
            "left_bytes": self.fleet.left_bytes,
            "fits": self.fits,
            "why": self.why,
            "verified": asdict(self.compiled) if self.compiled else None,
            "step": asdict(self.time)
            | {
                "seconds": self.time.seconds,
                "tokens_per_second": self.time.tokens_per_second,
                "mfu": self.time.mfu,
                "bound_by": self.time.bound_by,
            },
            "tokens": training.tokens,
            "steps": training.steps,
            "hours": self.seconds / 3600,
            "usd_per_hour": self.fleet.price_per_hour(),
            "cost_usd": self.cost_usd(),
            "cost_usd_spot": self.cost_usd(spot=True),
            "prices_dated": dated(),
            "estimate": self.compiled is None,
            "notes": self.notes,
        }


def vocabulary(config: TrainConfig) -> tuple[int, int]:
    """Ids in use and padded, of the tokenizer that a configuration asks for."""
    size, padded = config.model.vocab_size, config.model.padded_vocab_size
    if size is not None:
        return size, -(-size // 128) * 128 if padded is None else padded
    if config.data.tokenizer not in ("gpt2", "bpe"):
        stored = Tokenizer.load(config.data.tokenizer)
        return stored.vocab_size, stored.padded_vocab_size
    size = config.data.vocab_size
    return GPT2_VOCAB if config.data.tokenizer == "gpt2" else (size, -(-size // 128) * 128)


def derived(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The configuration with every number filled in, and the sentences about them.

    A plan knows no data, so no epoch. Changes of the decay there are left out, for they cost
    neither time nor memory; those of the batch are put at the first steps, for each has a program
    of its own.
    """
    vocab, padded = vocabulary(config)
    kept = {
        name: tuple(text for text in getattr(config.optim, name) if "epoch" not in text)
        for name in ("weight_decay_steps", "matrix_weight_decay_steps")
    }
    ramp = config.training.batch_ramp
    if any("epoch" in text for text in ramp):
        changes = read_changes("training.batch_ramp", ramp)
        ramp = tuple(f"{change.value:g}@{step}" for step, change in enumerate(changes))
    training = replace(config.training, batch_ramp=ramp)
    config = replace(config, optim=replace(config.optim, **kept), training=training)
    return derive(config, vocab_size=vocab, padded_vocab_size=padded)


def make_plan(config: TrainConfig, fleet: Fleet) -> Plan:
    """Estimates a derived configuration on a fleet.

    Raises:
        ConfigError: its mesh does not fit the fleet or a size does not divide over it.
    """
    layout = layout_of(config, fleet)
    memory = estimate_memory(config, layout, fleet.chip.key)
    config = replace(config, mesh=layout.as_mesh())
    return Plan(config, fleet, layout, memory, step_time(config, layout, fleet))


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def describe(plan: Plan) -> str:
    """Rows, rematerialisation and mesh in a few words."""
    return f"{describe_rows(plan)}, remat {plan.config.model.remat}, mesh {plan.layout}"


def describe_rows(plan: Plan) -> str:
    """Rows that a device works on at once, and the micro-batches of a step."""
    training, rows = plan.config.training, rows_of_device(plan.config, plan.layout)
    accum = f", grad_accum {training.grad_accum}" if training.grad_accum > 1 else ""
    return f"{rows} row{'s' if rows > 1 else ''} per device{accum}"

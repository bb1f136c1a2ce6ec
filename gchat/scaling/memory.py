"""HBM of one device by part, as the TPU compiler would lay it out, without asking it.

The step has three moments at which most is alive: the loss (the head's gathered weights and
gradient beside all that the layers saved), a layer's backward pass (its recomputed forward, its
gathered weights and whole gradients, beside what is saved and the gradients so far), and the
update. The peak is state plus saved activations plus the worst of the three. The factors that the
compiler's own padding, double buffering and fusion put on each part stand in `calibration.json`,
fitted on compiled programs (`gchat.scaling.calibrate`).
"""

from dataclasses import asdict, dataclass

from gaia.kernels.splash import key_blocks
from gchat.config import TrainConfig
from gchat.model_config import GPTConfig
from gchat.scaling.calibration import Factors, factors
from gchat.scaling.counts import (
    FP32,
    Local,
    layer_elements,
    layer_matrices,
    local_sizes,
    share_of,
    state_bytes,
    trained_bytes,
)
from gchat.scaling.layout import Layout

# Where the compiler does not write the gradient of the logits in the compute dtype but casts it
# inside the two products that read it: seen in the buffers of d12 on v5e:2x4; for the same program
# v5p, v6e and tpu7x write it.
CASTS_IN_PRODUCTS = frozenset({"v5e"})


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the step's peak, by part."""

    params: int
    optimizer: int
    gradients: int
    activations: int
    """Saved by the layers for the backward pass, and recomputed by one layer in it."""
    logits: int
    """The loss: a chunk of logits, and the head's weights and gradient where it is the peak."""
    collectives: int
    """Weights gathered and gradients not yet scattered."""
    other: int
    """The program itself, the batch, the update's temporaries."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Parts:
    """Bytes of arrays by the sizes they are written with; what `calibrate` fits factors to."""

    params: float
    optimizer: float
    gradients: float
    """Gradients of the whole model, fp32, as far as they are this device's."""
    casts: float
    """Block matrices in the compute dtype: the compiler casts the stack once, before the loop."""
    saved: float
    """Saved by all layers for the backward pass."""
    layer: float
    """Activations that one layer has alive in its backward pass."""
    gathered: float
    """A layer's gathered weights and its whole fp32 gradients."""
    chunk: float
    """Logits of a chunk in fp32 and their gradient in the compute dtype."""
    head: float
    """The head's whole fp32 gradient, and its gathered weights."""
    hidden: float
    """Final hidden states: fp32 for the norm, and their gradient."""
    update: float
    """Muon's orthogonalisation."""


def parts_of(config: TrainConfig, layout: Layout, chip: str = "") -> Parts:
    """Parts of a derived configuration on one device of a chip, by the sizes of its arrays."""
    size = local_sizes(config, layout)
    params, optimizer = state_bytes(config, layout)
    tokens, number = size.tokens, size.number
    sharded = layout.weight_shards > 1
    layer = layer_elements(config.model, layout)
    chunk = min(config.training.loss_chunk, tokens)
    dlogits = 0 if chip in CASTS_IN_PRODUCTS and number < FP32 else number
    return Parts(
        params=params,
        optimizer=optimizer,
        gradients=trained_bytes(config, layout) * (2 if config.training.grad_accum > 1 else 1),
        casts=size.layers * layer / layout.weight_shards * number if number < FP32 else 0.0,
        saved=tokens * size.layers * _saved_bytes(config, size),
        layer=tokens * _layer_features(size, config.model) * number,
        gathered=layer * (number + FP32 if sharded else FP32),
        chunk=chunk * size.vocab * (FP32 + dlogits),
        head=size.dim * size.vocab * (FP32 + number * _copies_of_head(size) * sharded),
        hidden=tokens * size.dim * (FP32 + number),
        update=_update_bytes(config, layout),
    )


def estimate_memory(config: TrainConfig, layout: Layout, chip: str = "") -> Memory:
    """HBM of one device at the peak of a training step, by part.

    Args:
        config: derived.
        layout: how it lies on the fleet.
        chip: its key in gaia/hardware.toml. The factors are fitted on TPUs, a guess for GPUs.
    """
    p, f = parts_of(config, layout, chip), factors()
    moments = moment_bytes(p, f)
    worst = max(moments, key=lambda name: moments[name])
    loss, backward, update = (worst == name for name in ("loss", "backward", "update"))
    saved = 0.0 if update else f.saved * p.saved
    return Memory(
        params=int(p.params),
        optimizer=int(p.optimizer),
        gradients=int(f.gradients * p.gradients * (backward or update)),
        activations=int(saved + f.layer * p.layer * backward + p.hidden * loss),
        logits=int((f.chunk * p.chunk + f.head * p.head) * loss),
        collectives=int(f.gathered * p.gathered * backward),
        other=int(f.constant + p.casts * (not update) + f.update * p.update * update),
    )


def moment_bytes(p: Parts, f: Factors) -> dict[str, float]:
    """Bytes beside the state at each of the three moments."""
    layers = p.casts + f.saved * p.saved
    backward = f.gradients * p.gradients + f.layer * p.layer + f.gathered * p.gathered
    return {
        "loss": layers + f.chunk * p.chunk + f.head * p.head + p.hidden,
        "backward": layers + backward,
        "update": f.gradients * p.gradients + f.update * p.update,
    }


def _copies_of_head(size: Local) -> int:
    """Gathered heads: the compiler adds a transposed one where V is no multiple of 256.

    So every compiled program looked at: V = 50,304 has it, V = 128,256 has not.
    """
    return 1 + (size.vocab % 256 > 0)


def _saved_bytes(config: TrainConfig, size: Local) -> float:
    """Bytes per token and layer that the forward pass keeps on the device for the backward pass.

    By the names in `gchat.model`: the block's input always; attention's output with its
    logsumexp; q, k and v; gate and up; the output projection.
    """
    entry, gate_up = size.dim * size.number, size.wide * size.number
    qkv = (size.query + 2 * size.keys) * size.number
    attention = size.query * size.number + FP32 * size.heads
    kept = {
        "full": entry,
        "offload": entry + attention,
        "attention": entry + attention + qkv,
        "dots": entry + attention + qkv + gate_up + size.dim * size.number,
    }
    if config.model.remat in kept:
        return kept[config.model.remat]
    # What autodiff keeps of a block, as a compiled one shows it: the block norms' inputs and
    # results in fp32, the products' operands and results, and of each head logsumexp and rms.
    # An MLP's products take 2.5 with what the function after them keeps: of SwiGLU autodiff keeps
    # 6 F in all, of a squared ReLU 3.5 F (its mask is one byte), and both are 2.5 wide + narrow.
    heads = size.query + size.keys
    norms = 4 * size.dim * FP32
    operands = (3 * size.dim + 2 * heads + 2.5 * size.wide + size.narrow) * size.number
    return norms + operands + 3 * FP32 * size.heads


def _layer_features(size: Local, model: GPTConfig) -> float:
    """Features per token alive at once while one layer's backward pass runs.

    Products that start at the residual stream have a result and its gradient; those that lead back
    have their operand. The queries of attention get a gradient from each block of keys.
    """
    products = 4 * size.dim + 2 * (size.query + 2 * size.keys + size.wide) + size.narrow
    return products + size.query * key_blocks(model.seq_len, model.head_dim)


def _update_bytes(config: TrainConfig, layout: Layout) -> float:
    if config.optim.name != "muon":
        return 0.0
    number = 2 if config.optim.newton_schulz_dtype == "bfloat16" else 4
    largest = max(share_of(p, layout) for p in layer_matrices(config.model))
    return 2 * number * largest

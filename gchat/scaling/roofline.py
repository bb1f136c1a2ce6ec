"""Seconds of a training step, from what it asks of a device and what the device can do.

Per layer and micro-batch: products at a share of the peak, attention at a lower one, bytes to and
from HBM at a share of its bandwidth, weights gathered and gradients scattered over ICI behind the
computing as far as they fit, `tensor` sums in the open. Per step: the optimizer, and between
slices the sum of gradients. The shares are this file's only free numbers; `published.toml` holds
the points they were chosen on and the points they were checked on.
"""

from dataclasses import dataclass

from gchat.config import TrainConfig
from gchat.model_shape import flops_per_token, model_shape
from gchat.scaling.counts import (
    FP32,
    Local,
    gathered,
    goes_back,
    in_attention,
    layer_elements,
    layer_matrices,
    local_sizes,
    share_of,
    state_bytes,
)
from gchat.scaling.layout import Layout
from gchat.scaling.sku import Fleet


@dataclass(frozen=True)
class Shares:
    """Shares of a chip's figures that programs reach."""

    product: float
    """Large matrix products, of the bf16 peak."""
    attention: float
    """Flash attention, of the bf16 peak, counting only scores that are seen."""
    hbm: float
    """Elementwise passes, of the HBM bandwidth."""
    link: float
    """Gathers and sums inside a slice, of one direction of all links."""
    network: float
    """Sums between slices, of the data-centre network."""


# Chosen on the points marked `chosen` in published.toml (2026-11-21).
SHARES = {
    "tpu": Shares(product=0.70, attention=0.40, hbm=0.90, link=0.60, network=0.60),
    "gpu": Shares(product=0.55, attention=0.50, hbm=0.80, link=0.60, network=0.60),
}
UNKNOWN_DCN = 6.25e9
"""Bytes/s per chip between slices where the maker's figure is not known (v5p's)."""

# Passes over activations in HBM, as features read and written per token, in a layer's forward
# pass: norms, residual sums, RoPE, and each product's operands and results.
_PASSES_D, _PASSES_Q, _PASSES_K, _PASSES_WIDE, _PASSES_NARROW = 8, 4, 4, 1, 2


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what they go to; they add up to `seconds`."""

    products: float
    attention: float
    head: float
    memory: float
    """Elementwise passes and reading of weights."""
    optimizer: float
    ici: float
    """Collectives inside a slice that computing does not hide."""
    dcn: float
    """Sums of gradients between slices."""
    tokens: int
    """Tokens of the whole step."""
    model_flops: float
    """FLOPs of the whole step, as `flops_per_token` counts them."""
    peak_flops: float
    """FLOP/s of the whole fleet at its bf16 peak."""

    @property
    def seconds(self) -> float:
        """Length of one step."""
        return (
            self.products
            + self.attention
            + self.head
            + self.memory
            + self.optimizer
            + self.ici
            + self.dcn
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the whole fleet."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs (causal, without recomputation) over the bf16 peak."""
        return self.model_flops / self.seconds / self.peak_flops

    @property
    def bound_by(self) -> str:
        """The largest part."""
        names = ("products", "attention", "head", "memory", "optimizer", "ici", "dcn")
        return max(names, key=lambda name: getattr(self, name))


def step_time(
    config: TrainConfig,
    layout: Layout,
    fleet: Fleet,
    *,
    recomputed: float | None = None,
    extra_flops_per_token: float = 0.0,
) -> StepTime:
    """The roofline of a derived configuration.

    Args:
        config: derived.
        layout: how it lies on the fleet.
        fleet: what it runs on.
        recomputed: share of a layer's forward products computed twice, where the program is not
            ours; by `model.remat` when left out.
        extra_flops_per_token: products beside the model's, for programs that are not ours.
    """
    chip, shares = fleet.chip, SHARES[fleet.chip.kind]
    size, micro, depth = local_sizes(config, layout), config.training.grad_accum, config.model.depth
    product_rate = chip.flops_per_device * shares.product
    hbm = chip.hbm_bandwidth / chip.devices_per_chip * shares.hbm
    link = chip.link_bandwidth / chip.devices_per_chip / 2 * shares.link

    again = _recomputed(config, layout) if recomputed is None else recomputed
    products = (3 + again) * 2 * size.tokens * layer_elements(config.model, layout) / product_rate
    attention = _attention_flops(config, size, layout) / (chip.flops_per_device * shares.attention)
    memory = _layer_bytes(config, size, layout) / hbm
    computing = products + attention + memory
    exposed = max(0.0, _gather_seconds(config, layout, link, per_layer=True) - computing)
    exposed += _tensor_seconds(config, size, layout, link)
    head = 6 * size.tokens * size.dim * size.vocab / product_rate
    head += 3 * size.tokens * size.vocab * FP32 / hbm
    ends = max(0.0, _gather_seconds(config, layout, link, per_layer=False) - head)
    extra = extra_flops_per_token * size.tokens / layout.tensor / product_rate

    training = config.training
    tokens = training.amounts.batch_size * config.model.seq_len
    return StepTime(
        products=micro * (depth * products + extra),
        attention=micro * depth * attention,
        head=micro * head,
        memory=micro * depth * memory + _accumulation_bytes(config, layout) / hbm,
        optimizer=_optimizer_seconds(config, layout, hbm, product_rate),
        ici=micro * (depth * exposed + ends) + _replica_seconds(config, layout, fleet, link),
        dcn=_dcn_seconds(config, layout, fleet, shares.network),
        tokens=tokens,
        model_flops=flops_per_token(config.model) * tokens,
        peak_flops=chip.bf16_flops * fleet.chips,
    )


def _recomputed(config: TrainConfig, layout: Layout) -> float:
    """Share of a layer's forward products that the backward pass computes again."""
    model = config.model
    if model.remat != "attention":
        return float(model.remat == "full")
    # Attention's inputs are kept, and nobody asks for the result of the layer's last product.
    again = [p for p in layer_matrices(model) if in_attention(model, p) == goes_back(p)]
    return sum(gathered(p, layout) for p in again) / layer_elements(model, layout)


def _attention_flops(config: TrainConfig, size: Local, layout: Layout) -> float:
    # Forward 2 products, backward 5 (it computes the scores again).
    forward = 4.0 * size.tokens * size.seen * size.query
    forwards = 1 + (config.model.remat == "full")
    # Without balancing, the device with the last part of each row sees the most keys.
    uneven = 2 - 1 / layout.sequence
    return uneven * forward * (forwards + 2.5)


def _layer_bytes(config: TrainConfig, size: Local, layout: Layout) -> float:
    """To and from HBM in one layer of one micro-batch, forward and backward."""
    per_token = (
        _PASSES_D * size.dim
        + _PASSES_Q * size.query
        + _PASSES_K * size.keys
        + _PASSES_WIDE * size.wide
        + _PASSES_NARROW * size.narrow
    )
    passes = 3 + (config.model.remat != "none")
    activations = passes * per_token * size.number * size.tokens
    # A device's fp32 shard is read twice; the whole layer in the compute dtype is written and
    # read, forward and backward; its gradient is written, and read where it is scattered.
    shards = layout.weight_shards
    each = 2 * FP32 / shards + 4 * size.number + FP32 * (1 + (shards > 1))
    return activations + layer_elements(config.model, layout) * each


def _gather_seconds(config: TrainConfig, layout: Layout, link: float, *, per_layer: bool) -> float:
    """Weights gathered twice in the compute dtype, gradients scattered in fp32, for a layer or
    for head and embedding."""
    shards = layout.weight_shards
    if shards == 1:
        return 0.0
    number = 2 if config.model.compute_dtype == "bfloat16" else 4
    elements = sum(
        gathered(p, layout)
        for p in model_shape(config.model).parameters
        if (p.layers is not None) == per_layer and p.role != "gain"
    )
    gathers = 2 + (config.model.remat == "full")
    return elements * (gathers * number + FP32) * (shards - 1) / shards / link


def _tensor_seconds(config: TrainConfig, size: Local, layout: Layout, link: float) -> float:
    """Sums over `tensor` (two forward, two backward) and keys gathered over `sequence`."""
    seconds = 0.0
    forwards = 2 + (config.model.remat == "full")
    if layout.tensor > 1:
        part = (layout.tensor - 1) / layout.tensor
        seconds += forwards * 2 * 2 * part * size.tokens * size.dim * size.number / link
    if layout.sequence > 1:
        part = (layout.sequence - 1) / layout.sequence
        seconds += (forwards + 1) * 2 * part * size.whole_keys * size.number / link
    return seconds


def _accumulation_bytes(config: TrainConfig, layout: Layout) -> float:
    """Gradients of further micro-batches added to the sum."""
    params, _ = state_bytes(config, layout)
    return 3.0 * params * config.training.grad_accum if config.training.grad_accum > 1 else 0.0


def _optimizer_seconds(
    config: TrainConfig, layout: Layout, hbm: float, product_rate: float
) -> float:
    params, optimizer = state_bytes(config, layout)
    # Gradients read twice (norm, update), parameters and state read and written.
    seconds = (2 * params + 2 * params + 2 * optimizer) / hbm
    if config.optim.name == "muon":
        for matrix in layer_matrices(config.model):
            low, high = sorted(matrix.layer_shape)
            # Gram matrix, its square, and the product with x, per iteration.
            each = 2.0 * low * low * high * 2 + 2.0 * low**3
            share = share_of(matrix, layout) / matrix.size
            steps = config.optim.newton_schulz_steps
            seconds += steps * each * (matrix.layers or 1) * share / product_rate
    return seconds


def _replica_seconds(config: TrainConfig, layout: Layout, fleet: Fleet, link: float) -> float:
    """Sums of gradients over replicas that share a slice."""
    inside = layout.replica // fleet.slices
    params, _ = state_bytes(config, layout)
    return 2 * (inside - 1) / inside * params / link if inside > 1 else 0.0


def _dcn_seconds(config: TrainConfig, layout: Layout, fleet: Fleet, share: float) -> float:
    if fleet.slices == 1:
        return 0.0
    params, _ = state_bytes(config, layout)
    bandwidth = (fleet.chip.dcn_bandwidth or UNKNOWN_DCN) / fleet.chip.devices_per_chip
    return 2 * (fleet.slices - 1) / fleet.slices * params / (bandwidth * share)

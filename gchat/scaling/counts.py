"""Demands of a training step on one device: parameters, FLOPs, bytes.

Parameters and optimizer state are those of the model and the optimizer themselves, traced without
arrays (`gchat.model_shape`, `gchat.train_state`). Nothing here knows a chip. Letters: n tokens of
a device in one micro-batch, D model, Q query and K key features (heads x head size), V vocabulary;
those split over `tensor` are a device's part.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from gaia.optim import OptimConfig
from gaia.parallel import WEIGHTS
from gaia.params import Described
from gchat.config import TrainConfig
from gchat.model import GPTConfig
from gchat.model_shape import mean_keys_seen, model_shape
from gchat.scaling.layout import Layout, rows_of_device
from gchat.train_state import optimizer_arrays

FP32 = 4


def share_of(param: Described, layout: Layout) -> int:
    """Elements of a parameter on one device."""
    return param.size // math.prod(getattr(layout, axis) for axis in param.placement.axes)


def gathered(param: Described, layout: Layout) -> float:
    """Elements of a parameter on one device that has gathered it, in one layer."""
    split = [axis for axis in param.placement.axes if axis not in WEIGHTS]
    size = param.size // (param.layers or 1)
    return size / math.prod(getattr(layout, axis) for axis in split)


def layer_matrices(model: GPTConfig) -> list[Described]:
    """The matrices of the stacked blocks."""
    return [p for p in model_shape(model).parameters if p.layers and p.is_matrix]


@lru_cache(maxsize=1024)
def layer_elements(model: GPTConfig, layout: Layout) -> float:
    """Elements of one layer's matrices on a device that has gathered them."""
    return sum(gathered(p, layout) for p in layer_matrices(model))


def compute_bytes(model: GPTConfig) -> int:
    """Bytes of one number in the compute dtype."""
    return 2 if model.compute_dtype == "bfloat16" else 4


@dataclass(frozen=True)
class Local:
    """Sizes as one device sees them, in one micro-batch."""

    tokens: int
    layers: int
    heads: int
    dim: int
    query: int
    keys: int
    wide: int
    """Features that a layer's products beside attention's give from the residual stream: F for
    each of gate and up."""
    narrow: int
    """Features that such products take back to the residual stream: F for down."""
    vocab: int
    seen: float
    """Keys that a query attends to, on average over tokens and layers."""
    whole_keys: int
    """Key features of all tokens of the device's rows, other devices' parts included."""
    number: int
    """Bytes in the compute dtype."""


def local_sizes(config: TrainConfig, layout: Layout) -> Local:
    """The sizes of one device's part of a derived configuration."""
    model, s = config.model, config.model.sizes
    tokens = rows_of_device(config, layout) * model.seq_len // layout.sequence
    keys = s.kv_heads * model.head_dim // layout.tensor
    wide, narrow = widths(model)
    return Local(
        tokens=tokens,
        layers=model.depth,
        heads=s.heads // layout.tensor,
        dim=s.dim,
        query=s.heads * model.head_dim // layout.tensor,
        keys=keys,
        wide=wide // layout.tensor,
        narrow=narrow // layout.tensor,
        vocab=s.padded_vocab // layout.tensor,
        seen=mean_keys_seen(model),
        whole_keys=keys * tokens * layout.sequence,
        number=compute_bytes(model),
    )


def in_attention(model: GPTConfig, param: Described) -> bool:
    """Says if a parameter belongs to an attention."""
    return any(param.name.startswith(f"{name}.") for name, _ in model_shape(model).heads)


def goes_back(param: Described) -> bool:
    """Says if a matrix is split along its first dim: its product goes to the residual stream."""
    return "tensor" in param.placement.dims[0]


@lru_cache(maxsize=256)
def widths(model: GPTConfig) -> tuple[int, int]:
    """(`Local.wide`, `Local.narrow`) before they are split over `tensor`."""
    others = [p for p in layer_matrices(model) if not in_attention(model, p)]
    wide = sum(p.layer_shape[1] for p in others if not goes_back(p))
    return wide, sum(p.layer_shape[0] for p in others if goes_back(p))


def state_bytes(config: TrainConfig, layout: Layout) -> tuple[int, int]:
    """Bytes of parameters and of optimizer state on one device."""
    return _state_bytes(config.model, config.optim, layout)


def trained_bytes(config: TrainConfig, layout: Layout) -> int:
    """Bytes of the parameters that are trained, adapters or all, on one device."""
    parameters = model_shape(config.model).parameters
    adapters = [p for p in parameters if p.role == "adapter"]
    return sum(p.itemsize * share_of(p, layout) for p in adapters or parameters)


@lru_cache(maxsize=1024)
def _state_bytes(model: GPTConfig, optim: OptimConfig, layout: Layout) -> tuple[int, int]:
    params, optimizer = model_shape(model).parameters, optimizer_arrays(model, optim)
    return (
        sum(p.itemsize * share_of(p, layout) for p in params),
        sum(p.itemsize * share_of(p, layout) for p in optimizer),
    )

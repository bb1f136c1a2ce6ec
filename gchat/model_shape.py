"""The model without its arrays: its parameters as the modules make them, and what they cost.

Nothing here repeats the architecture: a model is traced once per configuration, and a layer that
is added in `model.py` is counted.
"""

from functools import lru_cache
from typing import Any, NamedTuple

from flax import nnx

from gaia import params
from gaia.layers import Attention
from gaia.params import Described
from gchat.model import GPT
from gchat.model_config import GPTConfig


class Divided(NamedTuple):
    """A size beside those of parameters that must divide over mesh axes."""

    name: str
    size: int
    axes: tuple[str, ...]


class ModelShape(NamedTuple):
    """A model with shapes in place of arrays."""

    graph: Any
    """Its static part."""
    arrays: Any
    """The tree of its parameters, as `TrainState.params` is, with ShapeDtypeStructs."""
    placements: Any
    """The same with `Placement`s."""
    parameters: tuple[Described, ...]
    """The same, flat."""
    divided: tuple[Divided, ...]
    heads: tuple[tuple[str, int], ...]
    """Path of each attention, and its query heads times their size, in all layers together."""


@lru_cache(maxsize=256)
def model_shape(config: GPTConfig) -> ModelShape:
    """Traces the model of a derived configuration, once for each.

    Raises:
        UnplacedParameter: a parameter does not say how it lies on the mesh.
    """
    model = nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    parameters = params.describe(model)
    divided, heads = [], []
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        for what, (size, axes) in getattr(module, "must_divide", dict)().items():
            divided.append(Divided(f"{name}: {what}" if name else what, size, axes))
        if isinstance(module, Attention):
            layers = next(p.layers for p in parameters if p.name.startswith(f"{name}.")) or 1
            heads.append((name, layers * module.heads * module.head_dim))
    return ModelShape(
        graph=graph,
        arrays=nnx.to_pure_dict(state),
        placements=params.placements(model),
        parameters=parameters,
        divided=tuple(divided),
        heads=tuple(heads),
    )


def all_params(config: GPTConfig) -> int:
    """Every parameter, embeddings and norm gains included."""
    return sum(p.size for p in model_shape(config).parameters)


def matmul_params(config: GPTConfig) -> int:
    """Parameters that multiply activations: all matrices, and a table that is the head as well."""
    return sum(p.size for p in model_shape(config).parameters if p.is_matrix)


def mean_keys_seen(config: GPTConfig) -> float:
    """Keys that a query attends to, on average over tokens and layers: the causal half of a row,
    and a window's share of it."""
    T = config.seq_len
    w = min(config.sizes.window, T)
    seen = {"L": T / 2, "S": w - w * w / (2 * T)}
    return sum(seen[kind] for kind in config.window_pattern) / len(config.window_pattern)


def flops_per_token(config: GPTConfig) -> float:
    """Training FLOPs per token: 6 per matmul parameter + 6·T·N·H per layer of causal attention.

    Where adapters are trained, 4 per matmul parameter, whose own gradients nobody needs, and 6 per
    parameter of the adapters. Only what a token can see is counted: the causal half, and a
    window's share of it. Recomputation is not counted (PaLM, appendix B, halved for causality).
    """
    features = sum(features for _, features in model_shape(config).heads)
    attended = 12.0 * mean_keys_seen(config) * features
    if config.lora_rank:
        adapters = sum(p.size for p in model_shape(config).parameters if p.role == "adapter")
        return 4.0 * matmul_params(config) + 6.0 * adapters + attended
    return 6.0 * matmul_params(config) + attended

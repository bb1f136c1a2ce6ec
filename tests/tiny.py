"""A model small enough to compile in a second, with random weights in every place.

The product's own initialisation leaves branches at zero, which would hide mistakes in them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaia.optim import OptimConfig
from gchat import model_shape, train_state
from gchat.config import DataConfig, TrainConfig, TrainingConfig, derive
from gchat.model import GPT, GPTConfig
from gchat.scaling import counts, structure

VOCAB, PADDED = 100, 128


def forget_models() -> None:
    """Clears what is remembered of models by configuration: for tests that change the model."""
    for module in (model_shape, train_state, counts, structure):
        for function in vars(module).values():
            getattr(function, "cache_clear", lambda: None)()


def gpt_config(**changes) -> GPTConfig:
    """Depth 2, width 32, 2 heads of 16, T = 32, fp32."""
    defaults = {
        "depth": 2,
        "dim": 32,
        "head_dim": 16,
        "hidden": 64,
        "seq_len": 32,
        "compute_dtype": "float32",
        "rope_theta": 10_000.0,
    }
    return GPTConfig(**(defaults | changes)).derive(VOCAB, PADDED)


def graph_of(config: GPTConfig):
    return nnx.graphdef(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))


def shapes_of(config: GPTConfig):
    abstract = nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(abstract))


def make(config: GPTConfig, seed: int = 0):
    """(graph, params) with N(0, 1/in) kernels, N(0, 1) tables and gains around 1."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        kind = str(getattr(path[-1], "key", path[-1]))
        noise = rng.standard_normal(leaf.shape)
        if kind == "scale":
            noise = 1.0 + 0.2 * noise
        elif kind == "kernel":
            noise = noise * leaf.shape[-2] ** -0.5
        return jnp.asarray(noise, jnp.float32)

    return graph_of(config), jax.tree_util.tree_map_with_path(fill, shapes_of(config))


@partial(jax.jit, static_argnums=0)
def logits(graph, params, tokens_BT, positions_BT=None, segment_ids_BT=None, key=None):
    """fp32 logits [B, T, V] of the whole rows at once."""
    model: GPT = nnx.merge(graph, params)
    x_BTD, _ = model(tokens_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT, key=key)
    return model.logits(x_BTD)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    """Random ids below VOCAB, int32."""
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


def train_config(**groups):
    """A derived TrainConfig of the tiny model; `model={...}`, `optim={...}`, … change fields."""
    model = {
        "depth": 2,
        "dim": 32,
        "head_dim": 16,
        "hidden": 64,
        "seq_len": 32,
        "compute_dtype": "float32",
    }
    training = {"batch_size": 4, "steps": 200}
    optim = {"lr": 1e-2, "warmup_steps": 0, "schedule": "constant"}
    config = TrainConfig(
        model=GPTConfig(**(model | groups.get("model", {}))),
        training=TrainingConfig(**(training | groups.get("training", {}))),
        optim=OptimConfig(**(optim | groups.get("optim", {}))),
        data=DataConfig(**groups.get("data", {})),
    )
    return derive(config, vocab_size=VOCAB, padded_vocab_size=PADDED)[0]


def decoded(graph, params, tokens_BT) -> np.ndarray:
    """fp32 logits [B, T, VOCAB] of the same rows read token by token, with a cache."""
    model: GPT = nnx.merge(graph, params)
    cache, pieces = model.empty_cache(tokens_BT.shape[0], 128), []
    for t in range(tokens_BT.shape[1]):
        at_B1 = np.full((tokens_BT.shape[0], 1), t, np.int32)
        x_B1D, cache = model(tokens_BT[:, t : t + 1], positions_BT=at_B1, cache=cache)
        pieces.append(np.asarray(model.logits(x_B1D))[..., :VOCAB])
    return np.concatenate(pieces, axis=1)

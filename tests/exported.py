"""Tiny runs to export: random weights in every place, a tokenizer of a few hundred ids."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from gaia.checkpoint import Checkpointer
from gchat import tokenizer as tokenizers
from gchat.config import CHECKPOINTS, TrainConfig
from gchat.model import GPTConfig
from gchat.run.folder import RunFolder
from gchat.run_config import RunConfig

TEXTS = [
    f"The {i} quick brown foxes; it's {i * 37} o'clock, isn't it?\n\n  Größe {i}!"
    for i in range(99)
]


def tokenizer(**options):
    return tokenizers.train_bpe(TEXTS, 330, **options)


def make_run(folder, made, **model):
    """A run folder with one checkpoint, as training leaves it."""
    sizes = {"depth": 2, "dim": 64, "head_dim": 16, "hidden": 96, "seq_len": 64}
    config = GPTConfig(**sizes | {"compute_dtype": "float32"} | model)
    config = config.derive(made.vocab_size, made.padded_vocab_size)
    _, params = tiny.make(config)
    params = jax.tree.map(jnp.asarray, params)
    path = Path(folder)
    whole = TrainConfig(model=config, run=RunConfig(name=path.name, dir=str(path)))
    RunFolder(path).write_config(whole, made)
    checkpoints = Checkpointer(str(path / CHECKPOINTS))
    assert checkpoints.save(7, {"params": params}, {}) is None
    assert checkpoints.close() is None
    return path


def arrays(source):
    return {name: np.asarray(tensor.read()) for name, tensor in source.tensors.items()}

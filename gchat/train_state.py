"""The state of training: born sharded, described for compilers, checked against a mesh.

Shapes: B rows, T time.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gaia import parallel
from gaia.data.batch import Batch
from gaia.optim import make_optimizer
from gchat.config import TrainConfig
from gchat.model import GPT


class TrainState(NamedTuple):
    """Everything an update reads and writes: fp32 parameters, optimizer state, finished steps."""

    params: Any
    opt_state: Any
    step: jax.Array


def _new_state(config: TrainConfig, key: jax.Array) -> TrainState:
    optimizer = make_optimizer(config.optim, config.training.amounts.steps)
    params = nnx.to_pure_dict(nnx.state(GPT(config.model, rngs=nnx.Rngs(key))))
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def abstract_model(config: TrainConfig) -> GPT:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: GPT(config.model, rngs=nnx.Rngs(0)))


def abstract_params(config: TrainConfig) -> Any:
    """Its parameters alone, as the tree that `TrainState.params` is."""
    return nnx.to_pure_dict(nnx.state(abstract_model(config)))


def graphdef(config: TrainConfig) -> Any:
    """The model's static part; no array is made."""
    return nnx.graphdef(abstract_model(config))


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for AOT compilation and for restoring.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    check_mesh(config, mesh)
    return parallel.abstract(
        partial(_new_state, config), mesh, jax.random.key(config.training.seed)
    )


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """The same of a batch of a derived configuration: inputs and targets, and where rows are
    packed positions and segments.

    Raises:
        ConfigError: the rows of a micro-batch do not divide over the mesh.
    """
    check_rows(config, mesh)
    shape = (config.training.amounts.batch_size, config.model.seq_len)
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=parallel.batch_sharding(mesh))
    return Batch(*(batch,) * (2 if config.data.packing == "split" else 4))


def init_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The state before the first update, born sharded under jit.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    key = jax.random.key(config.training.seed)
    return make_init(config, mesh)(key)


def make_init(config: TrainConfig, mesh: Mesh) -> Any:
    """The jitted program key -> `TrainState` that `init_state` runs; it can be lowered alone.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    check_mesh(config, mesh)
    key = jax.random.key(config.training.seed)
    return parallel.creator(partial(_new_state, config), mesh, key)


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError where a size of the model does not divide over the mesh."""
    s, check = config.model.sizes, partial(parallel.check_divides, mesh)
    divisor = "choose a multiple, or another mesh"
    check("model.heads", s.heads, ("tensor",), divisor)
    check("model.kv_heads", s.kv_heads, ("tensor",), divisor)
    check("model.dim", s.dim, parallel.WEIGHTS, divisor)
    matrix = ("tensor", *parallel.WEIGHTS)
    check("model.heads x model.head_dim", s.heads * config.model.head_dim, matrix, divisor)
    check("model.hidden", s.hidden, matrix, divisor)
    check("model.padded_vocab_size", s.padded_vocab, ("tensor",), divisor)
    check("model.seq_len", config.model.seq_len, ("sequence",), divisor)
    if config.model.positions == "learned":
        check("model.seq_len", config.model.seq_len, ("tensor",), divisor)


def check_rows(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError where the rows of a micro-batch do not divide over the mesh."""
    rows = config.training.amounts.batch_size // config.training.grad_accum
    remedy = "choose training.batch_size / training.grad_accum as a multiple"
    parallel.check_divides(mesh, "rows per micro-batch", rows, parallel.ROWS, remedy)

"""The state of training: born sharded, described for compilers, checked against a mesh.

Shapes: B rows, T time.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gaia import parallel, params
from gaia.data.batch import Batch
from gaia.errors import ConfigError
from gaia.optim import OptimConfig, make_optimizer
from gaia.params import Described
from gchat.config import TrainConfig
from gchat.model import GPT
from gchat.model_config import GPTConfig
from gchat.model_shape import model_shape


class TrainState(NamedTuple):
    """Everything an update reads and writes: fp32 parameters, optimizer state, finished steps."""

    params: Any
    opt_state: Any
    step: Any


def optimizer_of(config: TrainConfig) -> optax.GradientTransformation:
    """The update rule of a derived configuration for its model's parameters."""
    placements = model_shape(config.model).placements
    roles = params.roles(params.trained(placements, placements))
    return make_optimizer(config.optim, config.training.amounts.steps, roles, config.training.ramp)


def _new_state(config: TrainConfig, key: jax.Array) -> TrainState:
    arrays = nnx.to_pure_dict(nnx.state(GPT(config.model, rngs=nnx.Rngs(key))))
    part = params.trained(arrays, model_shape(config.model).placements)
    return TrainState(arrays, optimizer_of(config).init(part), jnp.zeros((), jnp.int32))


def _placements(config: TrainConfig) -> TrainState:
    """The statement of each array of the state (`gaia.params`)."""
    shape, optimizer = model_shape(config.model), optimizer_of(config)
    part = partial(params.trained, placements=shape.placements)
    opt_state = params.optimizer_placements(optimizer, part(shape.placements), part(shape.arrays))
    return TrainState(shape.placements, opt_state, params.WHOLE)


def param_specs(config: TrainConfig, mesh: Mesh) -> Any:
    """The PartitionSpec of every parameter, as the tree that `TrainState.params` is."""
    shape = model_shape(config.model)
    return params.specs(shape.placements, shape.arrays, mesh)


def param_placements(config: TrainConfig) -> Any:
    """The statement of every parameter (`gaia.params`), as the same tree."""
    return model_shape(config.model).placements


def graphdef(config: TrainConfig) -> Any:
    """The model's static part; no array is made."""
    return model_shape(config.model).graph


@lru_cache(maxsize=256)
def optimizer_arrays(model: GPTConfig, optim: OptimConfig) -> tuple[Described, ...]:
    """The arrays of the optimizer's state, each with the statement of what it follows."""
    shape = model_shape(model)
    placements = params.trained(shape.placements, shape.placements)
    shapes = params.trained(shape.arrays, shape.placements)
    optimizer = make_optimizer(optim, 1, params.roles(placements))
    places = params.optimizer_placements(optimizer, placements, shapes)
    arrays = jax.eval_shape(optimizer.init, shapes)
    named = jax.tree_util.tree_leaves_with_path(arrays)
    return tuple(
        Described(jax.tree_util.keystr(path), x.shape, x.dtype.itemsize, place)
        for (path, x), place in zip(named, jax.tree.leaves(places), strict=True)
    )


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for AOT compilation and for restoring.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    check_mesh(config, mesh)
    shapes, shardings = _shapes_and_shardings(config, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def abstract_params(model: GPTConfig, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters alone, for restoring them.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    check_model(model, mesh)
    shape = model_shape(model)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shape.arrays,
        params.shardings(shape.placements, shape.arrays, mesh),
    )


def _shapes_and_shardings(config: TrainConfig, mesh: Mesh) -> tuple[TrainState, TrainState]:
    shapes = jax.eval_shape(partial(_new_state, config), jax.random.key(config.training.seed))
    return shapes, params.shardings(_placements(config), shapes, mesh)


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """The same of a batch of a derived configuration: inputs and targets, and where rows are
    packed positions and segments.

    Raises:
        ConfigError: the rows of a micro-batch do not divide over the mesh.
    """
    check_rows(config, mesh)
    batch = abstract_rows(config.training.amounts.batch_size, config, mesh)
    packed = None if config.data.packing == "split" else batch
    return Batch(batch, batch, packed, packed)


def abstract_rows(count: int, config: TrainConfig, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of `count` rows of token ids [count, T]."""
    shape = (count, config.model.seq_len)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=parallel.batch_sharding(mesh))


def init_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The state before the first update, born sharded under jit.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    key = jax.random.key(config.training.seed)
    return make_init(config, mesh)(key)


def make_init(config: TrainConfig, mesh: Mesh) -> Any:
    """The jitted program key -> `TrainState` that `init_state` runs; it can be lowered alone.

    Random numbers are drawn shard by shard: with JAX's partitionable threefry (its default) the
    compiler carries the shardings of the leaves back to the draws, so no host copy is made and
    the peak is the state itself (tests/gchat/test_aot.py). That needs a key that lies on no mesh:
    one that is replicated over an explicit mesh gives draws whose types say that they are whole.

    Raises:
        ConfigError: a size of the model does not divide over the mesh.
    """
    check_mesh(config, mesh)
    _, shardings = _shapes_and_shardings(config, mesh)
    return jax.jit(partial(_new_state, config), out_shardings=shardings)


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError where a size of the model does not divide over the mesh."""
    check_model(config.model, mesh)


def check_model(model: GPTConfig, mesh: Mesh) -> None:
    """Raises ConfigError where a size of a derived model does not divide over the mesh."""
    shape, remedy = model_shape(model), "choose a multiple, or another mesh"
    for name, size, axes in shape.divided:
        parallel.check_divides(mesh, name, size, axes, remedy)
    params.check_parameters(shape.parameters, mesh)


def check_rows(config: TrainConfig, mesh: Mesh) -> None:
    """Raises ConfigError where the rows of a micro-batch, or of an update of a batch ramp, do not
    divide over the mesh."""
    rows, accum = config.training.amounts.batch_size, config.training.grad_accum
    remedy = "choose training.batch_size / training.grad_accum as a multiple"
    parallel.check_divides(mesh, "rows per micro-batch", rows // accum, parallel.ROWS, remedy)
    for parts in config.training.ramp.kinds[1:]:
        pieces = parts * micro_batches(accum, parts)
        if rows % pieces:
            raise ConfigError(
                f"training.batch_ramp has {parts} updates a step, and {rows} rows do not divide "
                f"into {pieces} micro-batches",
                "choose divisors of training.batch_size",
            )
        what = f"rows of {parts} updates a step (training.batch_ramp)"
        parallel.check_divides(mesh, what, rows // pieces, parallel.ROWS, "use fewer updates")


def micro_batches(accum: int, parts: int) -> int:
    """Micro-batches of an update, where a step of `accum` of them is `parts` updates; none of
    them has more rows than a micro-batch of the whole step."""
    return -(-accum // parts)

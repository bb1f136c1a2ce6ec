"""The update and the scorer: what one jitted program computes, and what each device does of it.

    compiled = make_train_step(graph, config, mesh).lower(
        abstract_state(config, mesh), *abstract_batch(config, mesh)
    ).compile()

compiles the update for any mesh, of devices that are here or of an AOT topology.

Shapes: B rows, T time, D model; b rows and t time of one device; A micro-batches of a step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gaia import parallel
from gaia.data.packing import Rows
from gaia.guards import keep_if_sound
from gaia.hardware import chip_of_device_kind
from gaia.kernels.cross_entropy import cross_entropy, token_nll
from gaia.optim import schedule
from gaia.params import sum_gradients
from gaia.xla_flags import compiler_options
from gchat.config import TrainConfig
from gchat.model import GPT
from gchat.train_state import (
    TrainState,
    abstract_batch,
    check_rows,
    optimizer_of,
    param_placements,
    param_specs,
)


class StepMetrics(NamedTuple):
    """Device scalars of one update, fp32."""

    loss: jax.Array
    grad_norm: jax.Array
    """Before clipping."""
    lr_share: jax.Array
    """Share of the peak learning rates."""
    fill: jax.Array | None = None
    """Share of positions with a target, of packed rows."""
    examples: jax.Array | None = None
    """Documents, or pieces of them, in the batch, of packed rows."""

    def packed(self) -> dict[str, float]:
        """What packed rows held, by the names of the log; nothing of rows of one stream."""
        found = {"data/fill": self.fill, "data/examples": self.examples}
        return {name: float(value) for name, value in found.items() if value is not None}


def make_train_step(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., Any]:
    """The jitted update (state, inputs_BT, targets_BT) -> (state, metrics); donates the state.

    Packed rows (`data.packing`) come with positions_BT and segment_ids_BT behind the targets.
    The loss is the mean over all unmasked targets (>= 0) of the step, however it is split over
    devices and micro-batches: each sum is divided by the count of the whole step.
    With `limit`, a step whose loss is above it, or not finite, changes no parameter.

    Raises:
        ConfigError: the rows of a micro-batch do not divide over the mesh.
    """
    check_rows(config, mesh)
    optimizer = optimizer_of(config)
    lr_share = schedule(config.optim, config.training.steps or 1)
    loss_and_grads = _loss_and_grads(graph, config, mesh)

    @partial(jax.jit, donate_argnums=0, compiler_options=_compiler_options(mesh))
    def train_step(state: TrainState, inputs_BT, targets_BT, *packed, limit=None):
        count = jnp.maximum(jnp.sum(targets_BT >= 0), 1).astype(jnp.float32)
        # Randomness is a function of (seed, step, place), so a resume needs no stored key.
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        loss, grads = loss_and_grads(state.params, key, count, inputs_BT, targets_BT, *packed)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.tree.norm(grads), lr_share(state.step))
        if packed:
            positions_BT, segment_ids_BT = packed
            examples = jnp.sum((positions_BT == 0) & (segment_ids_BT > 0))
            metrics = metrics._replace(fill=count / inputs_BT.size, examples=examples)
        after = TrainState(params, opt_state, state.step + 1)
        if limit is not None:
            after = keep_if_sound(after, state, loss, metrics.grad_norm, limit)
        return after, metrics

    return train_step


def _loss_and_grads(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., Any]:
    """(params, key, target count, *batch) -> loss and gradients of the step."""
    A, c = config.training.grad_accum, config.model
    specs, placements = param_specs(config, mesh), param_placements(config)
    batch = (parallel.batch_sharding(mesh).spec,) * len(abstract_batch(config, mesh))

    def loss_share(params, inputs_BT, targets_BT, packed, key, count):
        model: GPT = nnx.merge(graph, params)
        where = dict(zip(("positions_BT", "segment_ids_BT"), packed, strict=False))
        x_BTD, _ = model(inputs_BT, **where, key=key)
        total, _ = cross_entropy(
            x_BTD.reshape(-1, x_BTD.shape[-1]),
            model.head_kernel,
            targets_BT.reshape(-1),
            vocab_size=c.sizes.vocab,
            chunk=config.training.loss_chunk,
        )
        return total / count

    def loss_and_grads(params, key, count, *batch_bt):
        """From the part of one device: the sums over all of them."""
        loss, grads = sums(params, key, count, *batch_bt)
        return parallel.psum(loss, parallel.TOKENS), sum_gradients(grads, placements)

    def sums(params, key, count, *batch_bt):
        key = jax.random.fold_in(key, parallel.index(*parallel.TOKENS))

        def micro(batch_mt, i):
            inputs_mt, targets_mt, *packed_mt = batch_mt
            dropout_key = jax.random.fold_in(key, i) if c.dropout else None
            grad_of = jax.value_and_grad(loss_share)
            return grad_of(params, inputs_mt, targets_mt, packed_mt, dropout_key, count)

        if A == 1:
            return micro(batch_bt, 0)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, micro(*batch)), None

        split = jax.tree.map(lambda a: a.reshape(A, a.shape[0] // A, a.shape[1]), batch_bt)
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zeros, (split, jnp.arange(A)))[0]

    return parallel.per_device(loss_and_grads, mesh, (specs, P(), P(), *batch), (P(), specs))


def _compiler_options(mesh: Mesh) -> dict[str, str] | None:
    chip = chip_of_device_kind(mesh.devices.flat[0].device_kind)
    return compiler_options(chip.key if chip else None) or None


def make_scorer(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """The jitted forward pass (params, packed rows) -> nats per target [B, T], fp32."""
    c = config.model

    def score(params, inputs_bt, targets_bt, positions_bt, segment_ids_bt):
        model: GPT = nnx.merge(graph, params)
        x_btD, _ = model(inputs_bt, positions_BT=positions_bt, segment_ids_BT=segment_ids_bt)
        nll_n = token_nll(
            x_btD.reshape(-1, x_btD.shape[-1]),
            model.head_kernel,
            targets_bt.reshape(-1),
            vocab_size=c.sizes.vocab,
            chunk=config.training.loss_chunk,
        )
        return nll_n.reshape(targets_bt.shape)

    specs = param_specs(config, mesh)
    batch = parallel.batch_sharding(mesh).spec
    on_each_device = jax.jit(
        parallel.per_device(score, mesh, (specs, *[batch] * 4), batch),
        out_shardings=parallel.replicated(mesh),  # every process adds up the same numbers
    )

    def score_rows(params, rows: Rows) -> jax.Array:
        return on_each_device(params, *(parallel.shard_whole(a, mesh) for a in rows))

    return score_rows

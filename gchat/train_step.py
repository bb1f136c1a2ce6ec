"""The update and the scorer: what one jitted program computes, and what each device does of it.

    compiled = make_train_step(graph, config, mesh).lower(
        abstract_state(config, mesh), abstract_batch(config, mesh)
    ).compile()

compiles the update for any mesh, of devices that are here or of an AOT topology.

Shapes: B rows, T time, D model; b rows and t time of one device; A micro-batches of a step.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gaia import parallel
from gaia.data.batch import Batch
from gaia.guards import keep_if_finite
from gaia.hardware import chip_of_device_kind
from gaia.kernels.cross_entropy import token_nll
from gaia.optim import schedule
from gaia.params import sum_gradients, trained, with_trained
from gaia.xla_flags import compiler_options
from gchat.config import TrainConfig
from gchat.model import GPT
from gchat.objective import Objective, hidden_states, next_token
from gchat.train_state import (
    TrainState,
    check_rows,
    micro_batches,
    optimizer_of,
    param_placements,
    param_specs,
)


class StepMetrics(NamedTuple):
    """Device scalars of one update, fp32."""

    loss: jax.Array
    grad_norm: jax.Array
    """Norm of the gradient before clipping."""
    lr_share: jax.Array
    """Share of the peak learning rates."""
    more: Mapping[str, jax.Array | float]
    """Further scalars, by the names of the log."""


Update = Callable[..., tuple[TrainState, StepMetrics]]
"""(state, batch, limit=…) -> (state, metrics); donates the state."""


def make_train_step(
    graph: Any, config: TrainConfig, mesh: Mesh, objective: Objective = next_token, parts: int = 1
) -> Update:
    """The jitted update (state, batch) -> (state, metrics); donates the state.

    The loss is the objective's sum over the whole step divided by its count, however the step is
    split over devices and micro-batches. With `limit`, a step whose loss is above it, or not
    finite, changes no parameter.

    With several `parts` (a batch ramp, `gaia.batch_ramp`) the step is that many updates, each of
    its share of the rows; it reports their mean loss and their largest gradient.

    Raises:
        ConfigError: the rows of a micro-batch do not divide over the mesh.
    """
    check_rows(config, mesh)
    optimizer = optimizer_of(config)
    lr_share = schedule(config.optim, config.training.amounts.steps)
    accum = micro_batches(config.training.grad_accum, parts)
    loss_and_grads = _loss_and_grads(graph, config, mesh, objective, accum)
    placements = param_placements(config)

    @partial(jax.jit, donate_argnums=0, compiler_options=_compiler_options(mesh))
    def train_step(state: TrainState, batch: Batch, limit=None):
        objective.check(batch)
        # Randomness is a function of (seed, step, place), so a resume needs no stored key.
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)

        def update(before, rows_and_key):
            (params, opt_state), (rows, key) = before, rows_and_key
            (loss, sums), grads = loss_and_grads(params, key, rows)
            part = trained(params, placements)
            updates, opt_state = optimizer.update(grads, opt_state, part)
            params = with_trained(params, optax.apply_updates(part, updates))
            return (params, opt_state), (loss, sums, optax.tree.norm(grads))

        before = (state.params, state.opt_state)
        if parts == 1:
            after, (loss, sums, grad_norm) = update(before, (batch, key))
        else:
            shares = (_every_kth_row(batch, parts), jax.random.split(key, parts))
            after, (losses, sums, norms) = jax.lax.scan(update, before, shares)
            loss, sums = jax.tree.map(jnp.mean, (losses, sums))
            grad_norm = jnp.max(norms)
        more = _packing_metrics(batch) | dict(zip(objective.sums, sums, strict=True))
        lr = lr_share(state.step) if parts == 1 else lr_share(state.step) * parts**-0.5
        metrics = StepMetrics(loss, grad_norm, lr, more)
        after = TrainState(*after, state.step + 1)
        if limit is not None:
            after = keep_if_finite(after, state, loss, metrics.grad_norm, limit)
        return after, metrics

    return train_step


def _every_kth_row(batch: Batch, parts: int) -> Batch:
    """The rows of each update, [K, B / K, T]: row r is of update r % K, on any mesh."""
    return jax.tree.map(lambda a: a.reshape(-1, parts, a.shape[1]).swapaxes(0, 1), batch)


def changing_step(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[[int], Update] | None:
    """The update that follows so many finished steps, under a batch ramp; None without one.

    Raises:
        ConfigError: as `make_train_step`.
    """
    ramp = config.training.ramp
    if not ramp.parts:
        return None
    steps = {k: make_train_step(graph, config, mesh, parts=k) for k in ramp.kinds}
    return lambda step: steps[ramp.parts_at(step)]


def _packing_metrics(batch: Batch) -> dict[str, jax.Array]:
    """Metrics of how full packed rows are; none for rows of one stream."""
    if batch.segments_BT is None or batch.positions_BT is None:
        return {}
    learned = jnp.sum(batch.targets_BT >= 0).astype(jnp.float32)
    examples = jnp.sum((batch.positions_BT == 0) & (batch.segments_BT > 0))
    return {"data/fill": learned / batch.inputs_BT.size, "data/examples": examples}


def _loss_and_grads(
    graph: Any, config: TrainConfig, mesh: Mesh, objective: Objective, A: int
) -> Callable[..., tuple[Any, Any]]:
    """(params, key, batch) -> (loss, further sums) and gradients of an update, where trained."""
    specs, placements = param_specs(config, mesh), param_placements(config)
    part_specs, part_placements = (trained(tree, placements) for tree in (specs, placements))

    def loss_share(part, params, batch_mt: Batch, key, count):
        model: GPT = nnx.merge(graph, with_trained(params, part))
        loss, sums = objective.loss_and_sums(config, model, batch_mt, key)
        return loss / count, tuple(x / count for x in sums)

    def loss_and_grads(params, key, batch_bt: Batch):
        """From the part of one device: the sums over all of them."""
        count = parallel.psum(objective.count(batch_bt), parallel.TOKENS)
        if jnp.issubdtype(count.dtype, jnp.integer):
            count = jnp.maximum(count, 1).astype(jnp.float32)
        else:  # a sum of weights may lie below 1
            count = jnp.where(count == 0, 1.0, count)
        shares, grads = sums(params, key, count, batch_bt)
        shares = jax.tree.map(lambda x: parallel.psum(x, parallel.TOKENS), shares)
        return shares, sum_gradients(grads, part_placements)

    def sums(params, key, count, batch_bt: Batch):
        key = jax.random.fold_in(key, parallel.index(*parallel.TOKENS))
        part = trained(params, placements)

        def micro(batch_mt: Batch, i):
            dropout_key = jax.random.fold_in(key, i) if config.model.dropout else None
            loss_and_grads = jax.value_and_grad(loss_share, has_aux=True)
            return loss_and_grads(part, params, batch_mt, dropout_key, count)

        if A == 1:
            return micro(batch_bt, 0)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, micro(*batch)), None

        split = jax.tree.map(lambda a: a.reshape(A, a.shape[0] // A, a.shape[1]), batch_bt)
        nothing = (jnp.zeros(()), (jnp.zeros(()),) * len(objective.sums))
        zeros = (nothing, jax.tree.map(jnp.zeros_like, part))
        return jax.lax.scan(add, zeros, (split, jnp.arange(A)))[0]

    def on_each_device(params, key, batch: Batch):
        rows = jax.tree.map(lambda _: parallel.batch_sharding(mesh).spec, batch)
        shares = (P(), (P(),) * len(objective.sums))
        arguments, results = (specs, P(), rows), (shares, part_specs)
        return parallel.per_device(loss_and_grads, mesh, arguments, results)(params, key, batch)

    return on_each_device


def _compiler_options(mesh: Mesh) -> dict[str, str] | None:
    chip = chip_of_device_kind(mesh.devices.flat[0].device_kind)
    return compiler_options(chip.key if chip else None) or None


EVAL_ROWS = 8
"""Rows that a device scores at once."""
_EVAL_TOKENS = 16_384  # that it scores at once, where rows are long


def eval_rows(mesh: Mesh, seq_len: int) -> int:
    """Rows of a batch to score; devices that split the tokens or heads of a row share its rows."""
    apart = math.prod(mesh.shape[axis] for axis in parallel.ROWS)
    long = _EVAL_TOKENS * mesh.shape["sequence"] // seq_len
    return apart * max(1, min(EVAL_ROWS, long))


def scorer_program(
    graph: Any, config: TrainConfig, mesh: Mesh, *, temperature: float = 1.0
) -> Callable[[Any, Batch], jax.Array]:
    """The jitted forward pass (params, batch) -> nats per target [B, T], fp32; it can be lowered.

    The batch holds packed rows as arrays of the whole mesh. `temperature` divides the logits.
    """

    def score(params, batch_bt: Batch):
        model: GPT = nnx.merge(graph, params)
        x_btD = hidden_states(model, batch_bt, None)
        nll_n = token_nll(
            x_btD.reshape(-1, x_btD.shape[-1]),
            model.head_kernel,
            batch_bt.targets_BT.reshape(-1),
            vocab_size=config.model.sizes.vocab,
            chunk=config.training.loss_chunk,
            temperature=temperature,
        )
        return nll_n.reshape(batch_bt.targets_BT.shape)

    specs = param_specs(config, mesh)
    rows = parallel.batch_sharding(mesh).spec
    return jax.jit(
        parallel.per_device(score, mesh, (specs, Batch(rows, rows, rows, rows)), rows),
        out_shardings=parallel.replicated(mesh),  # every process adds up the same numbers
    )


def make_scorer(
    graph: Any, config: TrainConfig, mesh: Mesh, *, temperature: float = 1.0
) -> Callable[[Any, Batch], jax.Array]:
    """The same for rows as NumPy arrays, which each process of the run holds whole."""
    program = scorer_program(graph, config, mesh, temperature=temperature)

    def score_rows(params, batch: Batch) -> jax.Array:
        whole = jax.tree.map(lambda a: parallel.shard_whole(a, mesh), batch)
        return program(params, whole)

    return score_rows

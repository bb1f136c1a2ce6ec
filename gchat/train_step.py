"""The update and the scorer: what one jitted program computes, and how rows meet devices.

Shapes: B rows, b rows of one device, T time, D model, A micro-batches of a step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gaia import parallel
from gaia.guards import keep_if_sound
from gaia.kernels.cross_entropy import cross_entropy, token_nll
from gaia.optim import make_optimizer, schedule
from gchat.config import TrainConfig
from gchat.evals import bpb
from gchat.model import GPT


class TrainState(NamedTuple):
    """Everything an update reads and writes: fp32 parameters, optimizer state, finished steps."""

    params: Any
    opt_state: Any
    step: jax.Array


class StepMetrics(NamedTuple):
    """Device scalars of one update, fp32."""

    loss: jax.Array
    grad_norm: jax.Array
    """Before clipping."""
    lr_share: jax.Array
    """Share of the peak learning rates."""


def init_state(config: TrainConfig, mesh: Mesh) -> tuple[Any, TrainState]:
    """The model's static graph and the state before the first update, born under jit."""
    optimizer = make_optimizer(config.optim, config.training.steps or 1)
    graph = nnx.graphdef(nnx.eval_shape(lambda: GPT(config.model, rngs=nnx.Rngs(0))))

    @partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def init(key: jax.Array) -> TrainState:
        params = nnx.to_pure_dict(nnx.state(GPT(config.model, rngs=nnx.Rngs(key))))
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    return graph, init(jax.random.key(config.training.seed))


def make_train_step(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., Any]:
    """The jitted update (state, inputs_BT, targets_BT) -> (state, metrics); donates the state.

    With a fourth argument, a step whose loss is above it, or not finite, changes no parameter.

    The loss is the mean over all unmasked targets (>= 0) of the step, however it is split over
    devices and micro-batches: each sum is divided by the count of the whole step.
    """
    optimizer = make_optimizer(config.optim, config.training.steps or 1)
    lr_share = schedule(config.optim, config.training.steps or 1)
    A, c = config.training.grad_accum, config.model

    def loss_share(params, inputs_BT, targets_BT, key, count):
        model: GPT = nnx.merge(graph, params)
        x_BTD, _ = model(inputs_BT, key=key)
        total, _ = cross_entropy(
            x_BTD.reshape(-1, x_BTD.shape[-1]),
            model.head_kernel,
            targets_BT.reshape(-1),
            vocab_size=c.sizes.vocab,
            chunk=config.training.loss_chunk,
        )
        return total / count

    def loss_and_grads(shared, inputs_bT, targets_bT):
        """Sums over the rows of one device, micro-batch by micro-batch."""
        params, key, count = shared
        key = jax.random.fold_in(key, parallel.device_index(mesh))

        def micro(inputs_mT, targets_mT, i):
            dropout_key = jax.random.fold_in(key, i) if c.dropout else None
            grad_of = jax.value_and_grad(loss_share)
            return grad_of(params, inputs_mT, targets_mT, dropout_key, count)

        if A == 1:
            return micro(inputs_bT, targets_bT, 0)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, micro(*batch)), None

        split = jax.tree.map(
            lambda a: a.reshape(A, a.shape[0] // A, a.shape[1]), (inputs_bT, targets_bT)
        )
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zeros, (*split, jnp.arange(A)))[0]

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, inputs_BT: jax.Array, targets_BT: jax.Array, limit=None):
        count = jnp.maximum(jnp.sum(targets_BT >= 0), 1).astype(jnp.float32)
        # Randomness is a function of (seed, step, place), so a resume needs no stored key.
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        over_rows = parallel.sum_over_rows(loss_and_grads, mesh)
        loss, grads = over_rows((state.params, key, count), inputs_BT, targets_BT)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, optax.tree.norm(grads), lr_share(state.step))
        after = TrainState(params, opt_state, state.step + 1)
        if limit is not None:
            after = keep_if_sound(after, state, loss, metrics.grad_norm, limit)
        return after, metrics

    return train_step


def make_scorer(graph: Any, config: TrainConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """The jitted forward pass (params, packed rows) -> nats per target [B, T], fp32."""
    c = config.model

    def score(params, inputs_bT, targets_bT, positions_bT, segment_ids_bT):
        model: GPT = nnx.merge(graph, params)
        x_bTD, _ = model(inputs_bT, positions_BT=positions_bT, segment_ids_BT=segment_ids_bT)
        nll_n = token_nll(
            x_bTD.reshape(-1, x_bTD.shape[-1]),
            model.head_kernel,
            targets_bT.reshape(-1),
            vocab_size=c.sizes.vocab,
            chunk=config.training.loss_chunk,
        )
        return nll_n.reshape(targets_bT.shape)

    # Every process has all rows and reads all results, so that all come to the same figures.
    over_rows = jax.jit(
        parallel.map_over_rows(score, mesh), out_shardings=parallel.replicated(mesh)
    )

    def score_rows(params, rows: bpb.Rows) -> jax.Array:
        return over_rows(params, *(parallel.place_rows(a, mesh) for a in rows))

    return score_rows

"""Objectives: a loss that is summed over targets, and the count that it is divided by.

    Objective(fields, count, loss)

The update (`gchat.train_step`) divides each device's and micro-batch's sum by the count of the
whole step, so an objective never sees how a step is split. Another objective is another function
here, handed to `make_train_step(…, objective=…)`.

Shapes: B rows, T time; b and t of one device and one micro-batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaia.data.batch import Batch
from gaia.errors import ConfigError
from gaia.kernels.cross_entropy import cross_entropy, token_nll_and_entropy
from gchat.config import TrainConfig
from gchat.model import GPT


class Objective(NamedTuple):
    """A quantity to minimise."""

    fields: tuple[str, ...]
    """Fields of `Batch` that it cannot do without; the others may be None."""
    count: Callable[[Batch], jax.Array]  # pyright: ignore[reportIncompatibleMethodOverride]
    """(batch) -> number (or weight) of its targets, a scalar; of one device's part."""
    loss: Callable[[TrainConfig, GPT, Batch, jax.Array | None], Any]
    """(config, model, batch, dropout key) -> loss in nats summed over its targets, fp32 scalar;
    with `sums`, the loss and a tuple of them."""
    sums: tuple[str, ...] = ()
    """Names, in the log, of further sums over the targets: they too are divided by the count."""

    def loss_and_sums(
        self, config: TrainConfig, model: GPT, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """The loss and the further sums of one device's part of a batch."""
        result = self.loss(config, model, batch, key)
        return result if self.sums else (result, ())

    def check(self, batch: Batch) -> None:
        """Raises ConfigError where the batch lacks a field."""
        for name in self.fields:
            if getattr(batch, name) is None:
                raise ConfigError(
                    f"the objective reads {name}, which these batches do not have",
                    "prepare data that has it, or choose a --data.packing with segments",
                )


def hidden_states(model: GPT, batch: Batch, key: jax.Array | None) -> jax.Array:
    """Final hidden states [b, t, D] of a batch's inputs, each token within its segment."""
    x_btD, _ = model(
        batch.inputs_BT, positions_BT=batch.positions_BT, segment_ids_BT=batch.segments_BT, key=key
    )
    return x_btD


def target_count(batch: Batch) -> jax.Array:
    """Targets that are learned, or the sum of their weights."""
    learned_BT = batch.targets_BT >= 0  # IGNORE is the only one below
    if batch.weights_BT is None:
        return jnp.sum(learned_BT)
    return jnp.sum(jnp.where(learned_BT, batch.weights_BT, 0.0))


def _next_token_loss(
    config: TrainConfig, model: GPT, batch: Batch, key: jax.Array | None
) -> jax.Array:
    x_btD = hidden_states(model, batch, key)
    total, _ = cross_entropy(
        x_btD.reshape(-1, x_btD.shape[-1]),
        model.head_kernel,
        batch.targets_BT.reshape(-1),
        None if batch.weights_BT is None else batch.weights_BT.reshape(-1),
        vocab_size=config.model.sizes.vocab,
        chunk=config.training.loss_chunk,
    )
    return total


next_token = Objective(("inputs_BT", "targets_BT"), target_count, _next_token_loss)
"""Cross-entropy of each next token, weighted where the batch has weights."""


LogprobLoss = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, tuple[jax.Array, ...]]]
"""(log-probability of each target [b, t], entropy there [b, t], batch) -> loss, further sums."""


def loss_of_logprobs(function: LogprobLoss, temperature: float = 1.0) -> Callable[..., Any]:
    """An `Objective.loss` that is any differentiable function of the targets' log-probabilities.

    All logits never exist at once: log-probabilities are computed forward only, the function's
    slope with respect to each is taken, and the cross-entropy kernel gives their gradients, each
    times its slope. That is the chain rule, exactly.

    Args:
        function: of fp32 arrays; log-probabilities and entropies are 0 where nothing is learned.
        temperature: divides the logits.
    """

    def loss(config: TrainConfig, model: GPT, batch: Batch, key: jax.Array | None) -> Any:
        x_btD, targets_n = hidden_states(model, batch, key), batch.targets_BT.reshape(-1)
        x_nD, head_DV = x_btD.reshape(-1, x_btD.shape[-1]), model.head_kernel
        options: dict[str, Any] = {
            "vocab_size": config.model.sizes.vocab,
            "chunk": config.training.loss_chunk,
            "temperature": temperature,
        }
        fixed_nD, fixed_DV = jax.lax.stop_gradient((x_nD, head_DV))
        nll_n, entropy_n = token_nll_and_entropy(fixed_nD, fixed_DV, targets_n, **options)
        shape = batch.targets_BT.shape

        def of_logprob(logprob_bt: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            return function(logprob_bt, entropy_n.reshape(shape), batch)

        (value, sums), slope_bt = jax.value_and_grad(of_logprob, has_aux=True)(
            -nll_n.reshape(shape)
        )
        total, _ = cross_entropy(x_nD, head_DV, targets_n, -slope_bt.reshape(-1), **options)
        return value + total - jax.lax.stop_gradient(total), sums

    return loss

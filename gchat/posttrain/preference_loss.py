"""DPO's loss (Rafailov et al. 2023), on rows of `gchat.posttrain.pairs`.

    margin = beta * (log-ratio of the chosen answer - log-ratio of the rejected one)
    loss   = -(1 - s) log sigmoid(margin) - s log sigmoid(-margin)        s: dpo.label_smoothing

A log-ratio is the answer's log-probability minus its log-probability under the base run; with
`dpo.length_normalised` divided by the number of its tokens.

Shapes: B pairs, T time; b of one device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaia.data.batch import Batch
from gchat.objective import Objective, loss_of_logprobs
from gchat.reward_config import DPOConfig

SUMS = ("dpo/accuracy", "dpo/margin", "dpo/chosen_reward", "dpo/rejected_reward")


class PairLoss(NamedTuple):
    """Of each pair, fp32 [b]."""

    loss_b: jax.Array
    chosen_b: jax.Array
    """Reward of the chosen answer: beta times its log-ratio."""
    rejected_b: jax.Array

    @property
    def margin_b(self) -> jax.Array:
        """By how much the chosen answer is preferred."""
        return self.chosen_b - self.rejected_b

    def right_b(self) -> jax.Array:
        """1 where the chosen answer is preferred, 1/2 where neither is."""
        return jnp.where(self.margin_b == 0, 0.5, (self.margin_b > 0).astype(jnp.float32))


def pair_loss(config: DPOConfig, logprob_bT: jax.Array, batch: Batch) -> PairLoss:
    """The loss of each pair, of the log-probabilities of a batch's targets."""
    assert batch.more is not None and batch.segments_BT is not None
    learned_bT = batch.targets_BT >= 0
    ratio_bT = jnp.where(learned_bT, logprob_bT - batch.more["reference"], 0.0)

    def reward_b(segment: int) -> jax.Array:
        here_bT = learned_bT & (batch.segments_BT == segment)
        total_b = jnp.sum(jnp.where(here_bT, ratio_bT, 0.0), axis=1)
        if config.length_normalised:
            total_b = total_b / jnp.maximum(jnp.sum(here_bT, axis=1), 1)
        return config.beta * total_b

    chosen_b, rejected_b = reward_b(1), reward_b(2)
    margin_b, smooth = chosen_b - rejected_b, config.label_smoothing
    loss_b = -(1 - smooth) * jax.nn.log_sigmoid(margin_b) - smooth * jax.nn.log_sigmoid(-margin_b)
    return PairLoss(loss_b, chosen_b, rejected_b)


def objective(config: DPOConfig) -> Objective:
    """The mean over pairs; rows lie whole on a device."""

    def of_logprobs(logprob_bT: jax.Array, entropy_bT: jax.Array, batch: Batch):
        del entropy_bT
        pairs = pair_loss(config, logprob_bT, batch)
        seen_b = jnp.any(batch.targets_BT >= 0, axis=1)
        per_pair = (pairs.right_b(), pairs.margin_b, pairs.chosen_b, pairs.rejected_b)
        sums = tuple(jnp.sum(jnp.where(seen_b, x_b, 0.0)) for x_b in per_pair)
        return jnp.sum(jnp.where(seen_b, pairs.loss_b, 0.0)), sums

    def count(batch: Batch) -> jax.Array:
        return jnp.sum(jnp.any(batch.targets_BT >= 0, axis=1))

    fields = ("inputs_BT", "targets_BT", "segments_BT", "more")
    return Objective(fields, count, loss_of_logprobs(of_logprobs), SUMS)

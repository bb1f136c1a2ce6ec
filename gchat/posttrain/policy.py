"""Policy gradients: advantages of groups, rows that a loss reads, and the losses themselves.

    dapo        min(r A, clip(r) A), mean over all tokens of the step  (Yu et al. 2025)
    grpo        the same, mean over each answer, then over answers     (Shao et al. 2024)
    dr_grpo     the same, sum over answers / (answers * max tokens), A = R - mean  (Liu et al. 2025)
    reinforce   A log p, summed over an answer, mean over answers, A = R - mean

r is the ratio of the policy to the one that the step began with, by the trainer's own
log-probabilities. The sampler's differ a little (other kernels, other rounding): each token's loss
is weighted by how much likelier the trainer found it, at most `rl.correction_cap` (truncated
importance sampling, Yao et al. 2025).

Shapes: G groups, n samples of each, B = G n rows, T time; b and t of one device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gaia import parallel
from gaia.data.batch import IGNORE, Batch
from gchat.chat_format import Message
from gchat.objective import Objective, loss_of_logprobs
from gchat.reward_config import Loss, RLConfig

_EPS = 1e-4  # of the deviation that advantages are divided by, as in TRL
SUMS = (
    "rl/ratio", "rl/clip_share", "rl/entropy", "rl/logprob_gap", "rl/correction", "rl/kl",
)  # fmt: skip


@dataclass(frozen=True)
class Rollout:
    """One answer to a prompt, token by token."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """The answer, its end token included where it has one."""
    chosen: tuple[bool, ...]
    """True for tokens that the model chose; False for the output of a tool."""
    logprobs: tuple[float, ...]
    """The sampler's, at its temperature; 0 where the token was not chosen."""
    message: Message
    """The answer as people and tasks read it."""
    ended: bool
    """It ended by itself, and not at the limit of tokens."""


def advantages(reward_Gn: np.ndarray, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    """Advantages within groups, fp32 [G, n], and which groups teach anything, bool [G].

    Args:
        reward_Gn: NaN where an answer could not be graded: it takes no part.
        loss: dapo and grpo divide by the group's (sample) deviation.
    """
    reward_Gn = np.asarray(reward_Gn, np.float64)
    known_Gn = np.isfinite(reward_Gn)
    count_G1 = np.maximum(known_Gn.sum(1, keepdims=True), 1)
    low_G = np.where(known_Gn, reward_Gn, np.inf).min(1)
    high_G = np.where(known_Gn, reward_Gn, -np.inf).max(1)
    kept_G = high_G > low_G
    mean_G1 = np.where(known_Gn, reward_Gn, 0).sum(1, keepdims=True) / count_G1
    away_Gn = np.where(known_Gn & kept_G[:, None], reward_Gn - mean_G1, 0.0)
    if loss in ("dapo", "grpo"):
        variance_G1 = np.square(away_Gn).sum(1, keepdims=True) / np.maximum(count_G1 - 1, 1)
        away_Gn = away_Gn / (np.sqrt(variance_G1) + _EPS)
    return away_Gn.astype(np.float32), kept_G


def rows(
    rollouts: Sequence[Rollout], advantage_B: np.ndarray, learned_B: np.ndarray, config: RLConfig,
    length: int,
) -> Batch:  # fmt: skip
    """A step's answers as rows [B, length] for `objective`.

    Args:
        rollouts: one per row; prompt and answer together have at most length + 1 tokens.
        advantage_B: of each.
        learned_B: False for answers of dropped groups, which count in no mean of the loss.
        config: of the loss.
        length: T.
    """
    B = len(rollouts)
    batch = Batch.padding(B, length)
    weights_BT = np.zeros((B, length), np.float32)
    more = {name: np.zeros((B, length), np.float32) for name in ("advantage", "sampler", "share")}
    for b, rollout in enumerate(rollouts):
        ids = np.asarray((*rollout.prompt, *rollout.ids), np.int32)
        N, first = len(ids) - 1, len(rollout.prompt) - 1  # the prompt's last token predicts
        chosen = np.asarray(rollout.chosen, bool)
        batch.inputs_BT[b, :N] = ids[:-1]
        batch.positions_BT[b, :N] = np.arange(N)
        batch.segments_BT[b, :N] = 1
        batch.targets_BT[b, first:N] = np.where(chosen, ids[first + 1 :], IGNORE)
        more["sampler"][b, first:N] = np.where(chosen, rollout.logprobs, 0)
        more["advantage"][b] = advantage_B[b]
        weights_BT[b, first:N] = chosen * _weight(config, int(chosen.sum())) * learned_B[b]
    more["share"][:] = batch.targets_BT != IGNORE
    more["share"] /= max(1.0, more["share"].sum())
    weights_BT /= _total(config, weights_BT, int(learned_B.sum()))
    return batch._replace(weights_BT=weights_BT, more=more)


def _weight(config: RLConfig, tokens: int) -> float:
    """Weight of each token of an answer, before it is divided by `_total`."""
    return 1 / max(1, tokens) if config.loss == "grpo" else 1.0


def _total(config: RLConfig, weights_BT: np.ndarray, answers: int) -> float:
    """What the sum over a step's tokens is divided by."""
    if config.loss == "dapo":
        return max(1.0, float(weights_BT.sum()))
    return max(1, answers) * (config.max_new_tokens if config.loss == "dr_grpo" else 1)


def objective(config: RLConfig) -> Objective:
    """The loss of rows of `rows`, with the sums that are logged.

    `Batch.more` may hold "old" (the policy's log-probabilities when the step began; without them it
    begins here, at a ratio of 1) and must hold "reference" (the base run's) where `rl.kl` is not 0.
    """

    def of_logprobs(logprob_bt: jax.Array, entropy_bt: jax.Array, batch: Batch):
        more = batch.more
        assert more is not None
        old_bt = more.get("old", jax.lax.stop_gradient(logprob_bt))
        drift_bt = jnp.where(batch.targets_BT >= 0, old_bt - more["sampler"], 0.0)
        ratio_bt = jnp.exp(logprob_bt - old_bt)
        gain_bt, clipped_bt = _gain(config, logprob_bt, ratio_bt, more["advantage"])
        correction_bt = _correction(config, drift_bt)
        loss_bt = -gain_bt * correction_bt
        kl_bt = jnp.zeros_like(loss_bt)
        if config.kl:
            away_bt = more["reference"] - logprob_bt
            kl_bt = jnp.exp(away_bt) - away_bt - 1  # k3 (Schulman 2020): unbiased, never negative
            loss_bt += config.kl * kl_bt
        per_token = (ratio_bt, clipped_bt, entropy_bt, jnp.abs(drift_bt), correction_bt, kl_bt)
        sums = tuple(jnp.sum(more["share"] * x_bt) for x_bt in per_token)
        return jnp.sum(batch.weights_BT * loss_bt), sums

    fields = ("inputs_BT", "targets_BT", "weights_BT", "more")
    return Objective(fields, _one, loss_of_logprobs(of_logprobs, config.temperature), SUMS)


def _gain(
    config: RLConfig, logprob_bt: jax.Array, ratio_bt: jax.Array, advantage_bt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What is maximised of each token, and whether clipping has taken its gradient."""
    if config.loss == "reinforce":
        return advantage_bt * logprob_bt, jnp.zeros_like(ratio_bt)
    bounded_bt = jnp.clip(ratio_bt, 1 - config.clip_low, 1 + config.clip_high)
    free_bt, held_bt = ratio_bt * advantage_bt, bounded_bt * advantage_bt
    return jnp.minimum(free_bt, held_bt), (held_bt < free_bt).astype(jnp.float32)


def _correction(config: RLConfig, drift_bt: jax.Array) -> jax.Array:
    """Weight of each token: the trainer's probability over the sampler's, capped."""
    if config.correction == "none":
        return jnp.ones_like(drift_bt)
    weight_bt = jnp.exp(jnp.minimum(drift_bt, 20.0))  # finite whatever the sampler says
    if config.correction == "mask":
        return jnp.where(weight_bt <= config.correction_cap, weight_bt, 0.0)
    return jnp.minimum(weight_bt, config.correction_cap)


def _one(batch: Batch) -> jax.Array:
    """The weights are shares of the whole step already: the counts of all devices make 1."""
    del batch
    return jnp.float32(1 / parallel.size(*parallel.TOKENS))

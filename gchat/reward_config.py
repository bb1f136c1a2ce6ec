"""Settings of the two stages that learn from judgements: `gchat rl` and `gchat dpo`."""

from dataclasses import dataclass
from typing import Literal

Loss = Literal["dapo", "grpo", "dr_grpo", "reinforce"]
Correction = Literal["truncate", "mask", "none"]


@dataclass(frozen=True)
class RLConfig:
    """Rollouts, rewards and the loss of `gchat rl`."""

    task: str | None = None
    """Task whose items are the prompts: gsm8k, gsm8k=FOLDER, spelling, json:FILE, …; its grades are
    the rewards unless rl.reward is given."""
    split: str = "train"
    """Split of the task to learn on."""
    reward: str | None = None
    """Python function that rewards an answer, as FILE.py:function; called with (text, item)."""
    reward_seconds: float = 10.0
    """Seconds that one call of the function may take."""
    prompts: int = 8
    """Prompts of a step."""
    samples: int = 8
    """Answers to each prompt: a group, whose rewards are compared."""
    max_new_tokens: int = 256
    """Limit of the tokens of an answer, calls of tools and their output included."""
    temperature: float = 1.0
    """Divides the logits of the sampler, and those of the loss."""
    loss: Loss = "dapo"
    """dapo (mean over tokens), grpo (mean over each answer's tokens, then over answers), dr_grpo
    (sum over rl.max_new_tokens, no division by the deviation), reinforce (sum, no clipping)."""
    clip_low: float = 0.2
    """Ratios below 1 by more than this earn nothing more."""
    clip_high: float = 0.28
    """Ratios above 1 by more than this earn nothing more."""
    kl: float = 0.0
    """Weight of the divergence from the base run (k3 estimator); 0 keeps no copy of it."""
    passes: int = 1
    """Updates on the answers of one step; from the second on ratios differ from 1."""
    correction: Correction = "truncate"
    """Weight of a token by how likely the trainer and the sampler find it: truncate the weight at
    rl.correction_cap, mask tokens above it, or none."""
    correction_cap: float = 2.0
    """Largest such weight."""
    slots: int = 16
    """Answers that are decoded at once."""
    held_out: int = 64
    """Items that are answered greedily at each evaluation; 0 for none."""
    held_out_task: str | None = None
    """Task of these items; derived: the test split of rl.task, none where that has the items of
    training (a single file has no splits)."""
    stall_steps: int = 20
    """Steps in a row without a group of differing rewards after which the run stops."""


@dataclass(frozen=True)
class DPOConfig:
    """The loss of `gchat dpo`, and the pairs that it is measured on."""

    beta: float = 0.1
    """Strength of the tie to the base run: rewards are beta times a log-ratio."""
    label_smoothing: float = 0.0
    """Share of pairs whose answers are taken to be swapped (conservative DPO)."""
    length_normalised: bool = False
    """Divide each answer's log-ratio by its number of tokens."""
    held_out: int | None = None
    """Pairs kept out of training and measured; derived: one in 20, at most 256."""

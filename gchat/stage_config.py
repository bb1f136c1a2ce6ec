"""Facts of the stages that follow pretraining: base run, data, epochs and chat format."""

from dataclasses import dataclass
from typing import Literal

StageName = Literal["base", "mid", "sft", "dpo", "rl"]

VERBS = {"base": "train", "mid": "midtrain", "sft": "sft", "dpo": "dpo", "rl": "rl"}
"""Verbs of `gchat` by the name of their stage."""


@dataclass(frozen=True)
class StageConfig:
    """Stage of a run, and its data, for `gchat midtrain`, `sft`, `dpo` and `rl`."""

    name: StageName = "base"
    """Kind of training; the verb sets it."""
    data: tuple[str, ...] = ()
    """Conversations or text to train on: files, folders, globs, prepared data sets, or names of
    tasks; @N behind conversations or a task takes them N times."""
    epochs: float | None = None
    """Times that the data is seen; derived from training.steps where those are given."""
    chat: str | None = None
    """Format of the conversations that the run was trained on; derived. None for plain text."""
    base_step: int | None = None
    """Step of the base run's checkpoint that this run began with; derived."""
    base_commit: str | None = None
    """Commit of the code that trained the base run, as its report says; derived."""

"""Groups of the configuration that change how a run is saved, measured and displayed, not trained.

A resumed run may change all of them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class CheckpointConfig:
    """Times and place of the checkpoints that a run can resume from."""

    dir: str | None = None
    """Local path or gs:// address; derived: RUN/checkpoints."""
    every_steps: int = 0
    """Save each time this many steps have passed; 0 turns it off."""
    every_minutes: float = 10.0
    """Save when this many minutes have passed since the last save; 0 turns it off."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep checkpoints at multiples of this many steps; 0 for none."""


@dataclass(frozen=True)
class EvalConfig:
    """Measurements made while training."""

    every_steps: int = 250
    """Steps between validations; before the first and after the last step there is always one."""
    tokens: int = 10_485_760
    """Limit of the validation tokens scored during training and at the end."""
    stride_fraction: float = 0.5
    """Windows over a long document advance by this share of seq_len; every byte scores once."""
    files: dict[str, str] = field(default_factory=dict)
    """More text to score: name and path pairs, each with its loss, perplexity and bpb."""
    sample_every: int = 0
    """Steps between samples; the last step always samples. 0: only the last."""
    sample_tokens: int = 48
    """Tokens per sample."""
    core_every_steps: int = 0
    """Steps between evaluations on CORE, with one after the last step; 0 turns it off."""
    core_bundle: str | None = None
    """Folder of CORE's task files; nanochat's bundle, downloaded once, when left out."""
    core_max_per_task: int = 50
    """Items of each CORE task."""
    chat_every_steps: int = 0
    """Steps between evaluations on ChatCORE after pretraining, with one before the first step and
    after the last; 0 turns it off."""
    chat_tasks: tuple[str, ...] = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
    """Tasks of these evaluations, as NAME or NAME=SOURCE."""
    chat_max_per_task: int = 50
    """Items of each task of these evaluations."""
    chat_max_written: int = 24
    """Items of tasks whose answers are written (gsm8k, humaneval), which take longer."""
    chat_max_tokens: int = 256
    """Limit of the tokens of a written answer."""
    prompts: tuple[str, ...] | None = None
    """Prompts of the samples, at temperature 0; derived: how validation documents begin."""


@dataclass(frozen=True)
class RunConfig:
    """The run's folder and how it reports."""

    name: str = "gchat"
    """Name in metrics and dashboards."""
    dir: str | None = None
    """Folder of everything the run writes; derived: runs/NAME."""
    mirror: str | None = None
    """gs:// prefix that holds a copy of the run folder, and the checkpoints themselves."""
    log_interval: int = 10
    """Steps between lines printed where there is no terminal."""
    in_flight: int = 2
    """Steps dispatched before the oldest one's metrics are read."""
    price_per_hour: float | None = None
    """US dollars per hour of this machine (of all its hosts); GAIA_PRICE_PER_HOUR when left out."""
    picture_seconds: float = 0.0
    """Seconds between updates of RUN/live.png (sizes, schedule, curves, judge), which a process of
    its own draws; 0 draws none."""
    profile: str | None = None
    """Steps to trace with jax.profiler into RUN/profile, first and last: 10:13."""
    target_bpb: float | None = None
    """Validation bits per byte whose first crossing the report times."""
    target_core: float | None = None
    """CORE (v1) whose first crossing the report times; GPT-2 (1.6B) has 0.256525."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.dir or Path("runs") / self.name)


@dataclass(frozen=True)
class MetricsConfig:
    """Copies of the metrics for people of other programs."""

    sinks: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Mirror the metrics to these, in RUN/mirrors: an offline run of W&B, event files."""

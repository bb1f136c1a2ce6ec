"""The trainer's configuration: its groups, and every number that follows from others.

Presets under `configs/` hold only what differs from these defaults. `derive()` fills what was
left out, in numbered steps, and returns the sentences that a run prints about them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gaia.batch_ramp import BatchRamp
from gaia.config import load_preset, load_yaml, parse
from gaia.data.packing import Packing
from gaia.errors import ConfigError
from gaia.guards import GuardConfig
from gaia.optim import ONLY_MUON, ONLY_UNTIED, OptimConfig
from gaia.parallel import MeshConfig
from gchat import applied
from gchat.init_from import with_model_of_base
from gchat.model import GPTConfig
from gchat.model_config import DIALS, without_derived
from gchat.model_shape import flops_per_token, matmul_params
from gchat.ranges import check_ranges
from gchat.reward_config import DPOConfig, RLConfig
from gchat.run_config import CheckpointConfig, EvalConfig, MetricsConfig, RunConfig
from gchat.run_length import with_own_length, with_typed_length
from gchat.stage_config import StageConfig, StageName
from gchat.transfer import batch_rows, rates

ALIASES = {
    "--depth": "--model.depth",
    "--batch-size": "--training.batch-size",
    "--lr": "--optim.lr",
    "--warmup": "--optim.warmup-steps",
    "--max-steps": "--training.steps",
    "--log-interval": "--run.log-interval",
    "--data-dir": "--data.dir",
    "--packing": "--data.packing",
    "--checkpoint-dir": "--checkpoint.dir",
    "--run-dir": "--run.dir",
    "--init-from": "--training.init-from",
    "--profile": "--run.profile",
}


@dataclass(frozen=True)
class DataConfig:
    """Source of the tokens."""

    dir: str | None = None
    """Folder of shards and manifest.json; the speedrun prepares one when this is left out."""
    source: Literal["climbmix", "docs", "text"] = "climbmix"
    """Corpus that the speedrun prepares: climbmix, docs (offline docstrings), or text."""
    input: str | None = None
    """For source text: a file, folder or glob of .txt, .md, .jsonl or .parquet."""
    shards: int | None = None
    """For source climbmix: training shards to fetch; derived from the tokens of the run."""
    text: str | None = None
    """Text to train on without preparing it: a file, folder or glob of .txt, .md, .jsonl or
    .parquet, or a gs:// address. It is tokenized as it is needed, by data.tokenizer."""
    text_column: str = "text"
    """Field of the .jsonl and .parquet files of data.text that holds the text."""
    tokenizer: str = "gpt2"
    """Tokenizer of data.text and of what the speedrun prepares: gpt2, bpe to train one on the
    corpus, or the path of a tokenizer.json."""
    vocab_size: int = 32768
    """Vocabulary of a trained tokenizer, specials included."""
    forced: tuple[str, ...] = ()
    """Single tokens of a trained tokenizer: years as 1900-1949, months, and terms by themselves."""
    mixture: dict[str, str] = field(default_factory=dict)
    """Several data sets instead of one: name and folder or gs:// pairs. The first (or data.dir)
    gives the tokenizer and the validation text."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of training rows of each source of the mixture: name and number pairs."""
    packing: Packing = "split"
    """Packing of documents into rows: split (one stream, cut every seq_len tokens), best_fit or
    first_fit (whole documents, each a segment of its own), none (one padded document per row)."""
    window: int | None = None
    """Shards shuffled together (W). Fixed when the data was prepared; derived from its manifest."""
    fingerprint: str | None = None
    """Fingerprint of the shards behind the order; derived, and compared on resume."""
    cache_dir: str | None = None
    """Folder for shards of gs:// data on this machine; derived: $GAIA_HOME/shards."""
    cache_gib: float = 32.0
    """Shard cache limit, GiB; the longest unused shards go first."""
    patience_minutes: float = 10.0
    """Minutes without an answer from the bucket after which training stops."""

    @property
    def place(self) -> str:
        """Folder or address of the data set.

        Raises:
            ConfigError: none is given, or it is a mixture that nobody has opened yet.
        """
        if self.dir is None:
            raise ConfigError("data.dir is not set", "give --data-dir, or run gchat/speedrun.sh")
        return self.dir


@dataclass(frozen=True)
class TrainingConfig:
    """Length of the training, batch size and seed."""

    batch_size: int | None = None
    """Rows per optimizer step, over all devices; derived from the token budget (Power Lines)."""
    grad_accum: int = 1
    """Micro-batches a step is split into; same result, less memory."""
    batch_ramp: tuple[str, ...] = ()
    """Growing batch: updates that a step is split into, each from a step or epoch on. 4@0 2@200
    1@400 trains on quarters of the batch for 200 steps and on halves until step 400."""
    steps: int | None = None
    """Optimizer steps. The first of steps, tokens and tokens_per_param that is set decides."""
    tokens: int | None = None
    """Training tokens."""
    tokens_per_param: float = 8.0
    """Training tokens per matmul parameter (nanochat's speedrun: 8; Chinchilla: 20)."""
    seed: int = 1337
    """Seeds the initial weights, the data order and dropout."""
    loss_chunk: int = 4096
    """Tokens whose logits exist at once in the loss."""
    init_from: str | None = None
    """Folder of a run, trained or imported, whose newest parameters this one begins with. The
    model is that run's; what is typed of --model still counts. Needs that run's tokenizer."""

    @property
    def ramp(self) -> BatchRamp:
        """The batch ramp as numbers.

        Raises:
            ConfigError: a text of it cannot be read, or is in epochs that are not resolved yet.
        """
        return BatchRamp.read("training.batch_ramp", self.batch_ramp)

    def check_ramp(self, steps: int, stage: StageName) -> None:
        """Raises ConfigError for a batch ramp that cannot be read, or is without effect."""
        if self.batch_ramp and stage in ("dpo", "rl"):
            raise ConfigError(
                f"training.batch_ramp is {' '.join(self.batch_ramp)}, and {stage} takes its batch "
                "whole",
                "leave it out",
            )
        if not any("epoch" in text for text in self.batch_ramp):  # else once the data is known
            self.ramp.check("training.batch_ramp", steps)

    @property
    def amounts(self) -> "Amounts":
        """Rows, steps and tokens as plain integers.

        Raises:
            ConfigError: before `derive()` has filled them in.
        """
        if self.batch_size is None or self.steps is None or self.tokens is None:
            raise ConfigError("training amounts are not derived yet", "call derive() first")
        return Amounts(self.batch_size, self.steps, self.tokens)


@dataclass(frozen=True)
class Amounts:
    """Derived amounts of a training run."""

    batch_size: int
    """Rows of an optimizer step, over all devices."""
    steps: int
    tokens: int
    """Tokens of all steps."""


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    model: GPTConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    rl: RLConfig = field(default_factory=RLConfig)

    @property
    def checkpoints(self) -> str:
        """Folder or address of the run's checkpoints."""
        parent = self.run.mirror or str(self.run.folder)
        return self.checkpoint.dir or parent.rstrip("/") + f"/{CHECKPOINTS}"


# A resumed run may change these; every other field must be as it was.
FREE_ON_RESUME = (
    "run.", "eval.", "checkpoint.", "guards.", "metrics.", "mesh.", "data.dir", "data.mixture",
    "data.cache_", "data.text", "data.tokenizer", "data.patience_minutes", "model.scan_unroll",
    "model.remat", "rl.reward_seconds", "rl.stall_steps",
)  # fmt: skip

DESCRIPTION = """Train a base model on a prepared data set. Besides the options below: --resume
continues the run in --run-dir, with --extend --max-steps N for longer than it was to train;
--allow-restart lets --resume begin again where there is no checkpoint; --batch auto takes as many
rows at once as the compiled update has memory for, and accumulates up to the batch; --coordinator
HOST:PORT, --num-processes N and --process-id I start one of several processes (default
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, or what JAX detects); --join-seconds
and --heartbeat-seconds say how long to wait for the others."""

_DIALS = {f"--model.{name.replace('_', '-')}" for name in DIALS}

CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"
"""Names in a run's folder."""
CONFIG_DIR = Path(__file__).parent / "configs"


def load(
    args: list[str],
    *,
    preset: str | None = None,
    prog: str = "gchat train",
    also: Sequence[str] = (),
) -> TrainConfig:
    """`[CONFIG.yaml] --group.field value …` to a config; `preset` names the one to start from.

    `also` are options of the verb itself, which a misspelt one may have meant.

    Raises:
        ConfigError: naming the file or option, its value and the remedy.
    """
    tree: dict[str, Any] = {}
    if args and not args[0].startswith("-"):
        path, args = preset_path(args[0]), args[1:]
        tree = with_own_length(load_preset(path, CONFIG_DIR), load_yaml(path))
        if path.name == CONFIG:  # of a run: a new one shall not write into its folders
            applied.check(path)
            tree = without_places(tree, of_new_run=True)
    elif preset:
        tree = load_preset(preset_path(preset), CONFIG_DIR)
    if isinstance(tree.get("model"), Mapping) and typed_options(args) & _DIALS:
        tree["model"] = without_derived(tree["model"])
    return load_tree(with_model_of_base(tree, args, CONFIG), args, prog=prog, also=also)


def typed_options(args: Sequence[str], aliases: Mapping[str, str] = ALIASES) -> set[str]:
    """Options of a command line by their full names."""
    options = {arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")}
    return {aliases.get(option, option) for option in options}


def load_tree(
    tree: Mapping[str, Any],
    args: Sequence[str],
    *,
    prog: str,
    aliases: Mapping[str, str] = ALIASES,
    description: str = DESCRIPTION,
    also: Sequence[str] = (),
) -> TrainConfig:
    """A preset's fields and `--group.field value …` to a config.

    Raises:
        ConfigError: naming the option, its value and the remedy.
    """
    typed = typed_options(args, aliases)
    config = parse(
        TrainConfig, args, preset=with_typed_length(tree, typed), aliases=aliases, prog=prog,
        description=description, also=also, adding=("stage.data",),
    )  # fmt: skip
    idle = dict.fromkeys(ONLY_MUON, "optim.name muon") if config.optim.name != "muon" else {}
    idle |= dict.fromkeys(ONLY_UNTIED, "model.tied false") if config.model.tied else {}
    for name, remedy in idle.items():
        if f"--optim.{name.replace('_', '-')}" in typed:
            field = remedy.split()[0]
            group, _, of = field.partition(".")
            value = str(getattr(getattr(config, group), of)).lower()  # as it is typed
            raise ConfigError(
                f"optim.{name} is typed but {field} is {value}",
                f"leave it out, or use --{remedy}",
            )
    return config


def without_places(tree: Mapping[str, Any], *, of_new_run: bool = False) -> dict[str, Any]:
    """A run's configuration without the places that belong to it alone.

    Versions before 0.2 stored the run's folder, and the checkpoints inside it, relative to the
    working directory of the time; after a move these may name another run.

    Args:
        tree: content of config.yaml.
        of_new_run: also leave out the mirror and the facts of the data that the run began with.
    """
    groups = {name: dict(tree.get(name) or {}) for name in ("run", "checkpoint", "data")}
    run, checkpoint, data = groups.values()
    parents = [str(p).rstrip("/") for p in (run.get("dir"), run.get("mirror")) if p]
    if checkpoint.get("dir") in [f"{parent}/{CHECKPOINTS}" for parent in parents]:
        checkpoint.pop("dir")
    run.pop("dir", None)
    if of_new_run:
        for group, name in ((run, "mirror"), (data, "fingerprint"), (data, "window")):
            group.pop(name, None)
    return {**applied.options(tree), **{name: group for name, group in groups.items() if group}}


def preset_path(name: str) -> Path:
    """A path as given, or the file of a preset that ships with gchat."""
    shipped = CONFIG_DIR / f"{name}.yaml"
    return shipped if shipped.exists() and not Path(name).exists() else Path(name)


def derive(
    config: TrainConfig, *, vocab_size: int, padded_vocab_size: int
) -> tuple[TrainConfig, list[str]]:
    """Fills every derived number; each sentence returned says one of them and why.

    Raises:
        ConfigError: a value that cannot work, naming field, value and remedy.
    """
    check_ranges(config)
    said: list[str] = []
    # 1) Sizes follow from depth.
    model = config.model.derive(vocab_size, padded_vocab_size)
    params = matmul_params(model)
    said += _described(model)
    training = config.training
    config.guards.check(config.run.in_flight)
    # 2) Tokens follow from parameters unless steps or tokens are given.
    tokens = training.tokens
    if tokens is None:
        tokens = max(1, round(training.tokens_per_param * params))
    # 3) The batch follows from the tokens.
    batch_size = training.batch_size
    if batch_size is None:
        batch_size = batch_rows(model, tokens, training.tokens_per_param)
    if batch_size % training.grad_accum:
        raise ConfigError(
            f"training.grad_accum {training.grad_accum} does not divide "
            f"training.batch_size {batch_size}",
            "choose a divisor",
        )
    batch_tokens = batch_size * model.seq_len
    # 4) Steps follow from both.
    steps = training.steps
    if steps is None:
        steps = max(1, round(tokens / batch_tokens))
    said.append(
        f"training: {steps:,} steps of {batch_size} rows x {model.seq_len} = {batch_tokens:,} "
        f"tokens, {steps * batch_tokens / 1e6:,.2f}M in all "
        f"({steps * batch_tokens / params:.2f} per matmul parameter)"
    )
    training.check_ramp(steps, config.stage.name)
    training = replace(training, batch_size=batch_size, steps=steps, tokens=steps * batch_tokens)
    # 5) Learning rates follow from batch and width, and the decay from batch and tokens.
    optim, sentence = rates(config.optim, model, batch_tokens, steps, training.tokens_per_param)
    said.append(sentence)
    optim.check(steps)
    if model.remat != "none" and model.depth == len(model.window_pattern) > 1:
        said.append(
            f"warning: model.remat {model.remat} saves no memory on a CPU where "
            f"model.window_pattern is as long as the depth, {model.depth}: use a shorter pattern"
        )
    price_per_hour(config)  # refused now, not at the end
    return replace(config, model=model, optim=optim, training=training), said


def _described(model: GPTConfig) -> list[str]:
    """A derived model in two sentences."""
    s = model.sizes
    return [
        f"model: depth {model.depth} -> dim {s.dim}, {s.heads} heads x {model.head_dim}, "
        f"{s.kv_heads} kv heads, hidden {s.hidden}, vocab {s.vocab:,} (padded {s.padded_vocab:,})",
        f"size: {matmul_params(model) / 1e6:,.1f}M matmul parameters, "
        f"{flops_per_token(model) / 1e9:.3f} GFLOP per training token",
    ]


def price_per_hour(config: TrainConfig) -> float:
    """US dollars per hour of this machine: as given, or GAIA_PRICE_PER_HOUR, which `gml run` sets.

    0 where nobody says it. It is not kept with the run, which may go on elsewhere.

    Raises:
        ConfigError: it is not a price.
    """
    if config.run.price_per_hour is not None:
        return config.run.price_per_hour
    text = os.environ.get("GAIA_PRICE_PER_HOUR") or "0"
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise ConfigError(
            f"GAIA_PRICE_PER_HOUR is {text!r}", "use US dollars per hour, e.g. 1.2, or unset it"
        )
    return price

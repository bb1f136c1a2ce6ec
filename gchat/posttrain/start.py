"""The start of all stages after pretraining: a base run, its hyper-parameters, the way to the loop.

    sys.exit(run(Verb("sft", …), args))

A verb says in a `Verb` what is its own: defaults, how its data is made, and the `Stage` for the
loop. From the base run come the parameters, the tokenizer, and every hyper-parameter that is not
given; the base run's path, step and commit are kept in the new run's configuration. A resumed run
reads everything from its own folder.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from gaia import parallel, storage
from gaia.adapters import merged
from gaia.errors import ConfigError
from gaia.interrupt import raise_on_interrupt
from gaia.output import may_go_away
from gaia.processes.group import OPTIONS, Group, joined, take_options
from gaia.runtime import Machine
from gaia.runtime import start as start_machine
from gchat.chat_format import ChatFormat, read_format, write_format
from gchat.config import DataConfig, TrainConfig, derive, load_tree, typed_options
from gchat.posttrain.base_run import BaseRun, check_tokenizer, handed_down, open_base
from gchat.posttrain.first_state import first_state
from gchat.posttrain.lengths import with_length
from gchat.posttrain.refused import check_typed
from gchat.ranges import check_ranges
from gchat.run import mirror
from gchat.run.fitting import fitted_for_all, take_batch
from gchat.run.folder import check_free, check_resumable, read_config
from gchat.run.loop import Loop, Stage
from gchat.run.report import write_report
from gchat.run.session import Session
from gchat.run.training_data import TrainingData
from gchat.stage_config import VERBS
from gchat.tokenizer import Tokenizer
from gchat.train import config_for_all, say_how_to_go_on, take_flags
from gchat.train_state import TrainState, abstract_state, graphdef

STAGE_ALIASES = {
    "--base": "--training.init-from",
    "--base-checkpoint": "--training.init-from",
    "--data": "--stage.data",
    "--epochs": "--stage.epochs",
    "--output": "--run.dir",
    "--lora-rank": "--model.lora-rank",
    "--beta": "--dpo.beta",
    "--task": "--rl.task",
    "--reward": "--rl.reward",
}
"""Short names of the stages, beside those of `gchat train`."""

_FLAGS = ("--resume", "--allow-unfinished", "--allow-restart")
_OWN = (*_FLAGS, *STAGE_ALIASES, "--batch", *OPTIONS)
"""Options that are no field of the configuration, or a short name of one."""

_RATES = ("embed_lr", "head_lr", "gain_lr", "matrix_lr")


@dataclass(frozen=True)
class Verb:
    """One kind of training after pretraining, as its command line knows it."""

    name: Literal["mid", "sft", "dpo", "rl"]
    prog: str
    """Command that people type: `gchat sft`."""
    description: str
    """First paragraph of its help."""
    stage: Callable[["Started"], Stage]
    """Builds what the loop trains."""
    data: Callable[["Setting"], "Prepared"]
    """Prepares the training data, or says that the stage makes its own."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Preset laid over what the base run hands down."""
    lr_share: float = 1.0
    """Learning rates as a share of the base run's peaks, where `--lr` is not given."""
    warmup_share: float = 0.03
    """Warm-up steps as a share of all, where they are not given."""
    evaluations: int = 8
    """Evaluations of a run, where eval.every_steps is not given."""


class Prepared(NamedTuple):
    """Training data of a stage."""

    folder: str | None
    """Folder or address of prepared shards; None for a stage that makes its own batches."""
    chat: bool
    """The run is trained on conversations, and says so in its folder."""
    config: TrainConfig | None = None
    """The configuration with what follows from the data: for a stage that makes its own batches,
    batch, steps and epochs; None where nothing does."""


class Setting(NamedTuple):
    """A new run before its data is prepared."""

    config: TrainConfig
    """Not derived."""
    base: BaseRun
    format: ChatFormat
    """Format of conversations, should the stage train on them."""
    typed: frozenset[str]
    """Full names of the options that were given."""
    group: Group


class Started(NamedTuple):
    """A run that is about to begin or to go on; what `Verb.stage` works with."""

    config: TrainConfig
    """Derived."""
    session: Session
    tokenizer: Tokenizer
    format: ChatFormat | None
    """Format of the conversations; None where the stage trains on plain text."""
    data: TrainingData | None
    mesh: Mesh
    graph: Any
    """Static part of the model, with its adapters."""
    sentences: list[str]
    """Printed before the loop begins; a stage may add its own."""

    def init(self) -> TrainState:
        """The state before the first update: the base run's parameters, a fresh optimizer."""
        return first_state(self.config, self.mesh)

    def blank(self) -> TrainState:
        """Describes that state, for reading a checkpoint into it."""
        return abstract_state(self.config, self.mesh)

    def plain(self) -> TrainConfig:
        """The configuration of the model with its adapters merged."""
        return replace(self.config, model=self.config.model.without_adapters())

    def whole(self, params: Any) -> Any:
        """Parameters as others than the update take them: with adapters merged."""
        model = self.config.model
        return merged(params, model.lora_scale) if model.lora_rank else params


def run(verb: Verb, args: Sequence[str]) -> dict[str, Any]:
    """Runs a verb's command line to the end of its training or a stop; returns the summary.

    Raises:
        GaiaError: one line naming what cannot work and the remedy; nothing of a run was written.
    """
    processes, rest = take_options(spelled(args))
    auto_batch, rest = take_batch(rest)
    flags, rest = take_flags(rest, *_FLAGS)
    if flags["--allow-restart"] and not flags["--resume"]:
        raise ConfigError("--allow-restart is given without --resume", "add --resume")
    flags["--batch auto"] = auto_batch
    for name in ("--allow-unfinished", "--batch auto"):
        if flags[name] and flags["--resume"]:
            raise ConfigError(
                f"{name} with --resume: a resumed run has begun already", "leave it out"
            )
    with may_go_away(), joined(processes) as group:
        raise_on_interrupt()
        own = _given(verb, rest, resume=flags["--resume"]) if group.first else None
        config = config_for_all(own, group)
        machine = start_machine(matmul_precision=config.model.matmul_precision)
        started = _started(verb, config, machine, group, frozenset(typed_options(rest)), flags)
        for sentence in started.sentences:
            print(sentence)
        return _fit(verb, started)


def spelled(args: Sequence[str]) -> list[str]:
    """A command line with the stages' short names spelled out."""
    words = []
    for word in args:
        name, equals, value = word.partition("=")
        full = STAGE_ALIASES.get(name.replace("_", "-"), name) if word.startswith("--") else name
        words.append(f"{full}{equals}{value}")
    return words


def _given(verb: Verb, args: list[str], *, resume: bool) -> TrainConfig:
    """The configuration of a command line: of a new run, or of the one to resume."""
    typed = typed_options(args)
    if resume:
        config = load_tree({}, args, prog=verb.prog, also=_OWN)
        if config.run.dir is None:
            raise ConfigError("--resume names no run", "add --run-dir RUN")
        mirror.fetch(config.run.mirror, config.run.folder)
        check_resumable(config.run.folder)
        config = read_config(config.run.folder, args, prog=verb.prog)
        if config.stage.name != verb.name:
            raise ConfigError(
                f"run.dir {str(config.run.folder)!r} is a run of stage {config.stage.name}",
                f"resume it with `gchat {VERBS[config.stage.name]}`",
            )
        return config
    path = _base_path(args)
    if path is None and not _asks_for_help(args):
        load_tree(
            {}, args, prog=verb.prog, also=_OWN
        )  # `--bas RUN` is named before what is missing
        raise ConfigError(f"{verb.prog} needs a run to begin with", "add --base RUN")
    tree = handed_down(path) if path else {}
    if path:
        tree["run"] = {"name": f"{path.absolute().name}-{verb.name}", **tree.get("run", {})}
    base_optim = dict(tree.get("optim") or {})
    for group, fields in verb.defaults.items():
        tree[group] = {**(tree.get(group) or {}), **fields}
    if "lr" in base_optim and "lr" not in verb.defaults.get("optim", {}):
        tree["optim"]["lr"] = base_optim["lr"] * verb.lr_share
    config = load_tree(tree, args, prog=verb.prog, description=verb.description, also=_OWN)
    check_typed(verb.name, verb.prog, typed, epochs=config.stage.epochs is not None)
    check_ranges(config)
    check_free(config)
    return _with_rates(config, base_optim, typed)


def _base_path(args: Sequence[str]) -> Path | None:
    """The run that `--training.init-from` names."""
    for word, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in ("--training.init-from", "--init-from"):
            return Path(value if equals else following)
    return None


def _asks_for_help(args: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(args))


def _with_rates(config: TrainConfig, base: Mapping[str, Any], typed: set[str]) -> TrainConfig:
    """Other groups' learning rates in the ratio to `optim.lr` that they had in the base run."""
    old = base.get("lr")
    if not old:
        return config
    ratio = config.optim.lr / old
    rates = {
        name: base[name] * ratio
        for name in _RATES
        if base.get(name) is not None and f"--optim.{name.replace('_', '-')}" not in typed
    }
    return replace(config, optim=replace(config.optim, **rates))


def _started(
    verb: Verb,
    config: TrainConfig,
    machine: Machine,
    group: Group,
    typed: frozenset[str],
    flags: Mapping[str, bool],
) -> Started:
    """Everything up to the session: base run, format, data, length."""
    resume, sentences = flags["--resume"], list[str]()
    if resume:
        tokenizer = Tokenizer.load(config.run.folder)
        data = TrainingData(_found(config)) if config.data.dir else None
        config, _ = _derived(config, data, tokenizer)
    else:
        base = open_base(
            str(config.training.init_from),
            step=config.stage.base_step,
            allow_unfinished=flags["--allow-unfinished"],
        )
        tokenizer = base.tokenizer
        config = _with_lineage(verb, config, base)
        chat_format = read_format(base.path, tokenizer, wanted="chat")
        prepared = _prepared(verb, Setting(config, base, chat_format, typed, group))
        data, config = None, prepared.config or config
        if prepared.chat:
            config = replace(config, stage=replace(config.stage, chat=chat_format.kind))
        if prepared.folder is not None:
            data = TrainingData(replace(config.data, dir=prepared.folder))
            check_tokenizer(base, data.tokenizer, prepared.folder)
            config, said = with_length(config, data.rows(config), verb, typed)
            sentences += said
        config, said = _derived(config, data, tokenizer)
        if prepared.folder is None:
            said = said[:2] + said[3:]  # its rows are no seq_len long
            if flags["--batch auto"]:
                raise ConfigError(f"--batch auto is not of {verb.prog}", "give a number")
        if flags["--batch auto"]:
            config, chosen = fitted_for_all(config, group)
            sentences += chosen
        sentences = [*said[2:], *sentences, f"begins with step {base.step} of {base.path}"]
    if data is not None:
        data.check_same(group)
    session = Session(
        config,
        machine,
        tokenizer,
        resume=resume,
        allow_restart=flags["--allow-restart"],
        group=group,
        command=verb.prog,
    )
    mesh = parallel.make_mesh(config.mesh)
    where = config.run.folder if resume else config.training.init_from
    chat_format = read_format(str(where), tokenizer, wanted="chat") if config.stage.chat else None
    return Started(config, session, tokenizer, chat_format, data, mesh, graphdef(config), sentences)


def _found(config: TrainConfig) -> DataConfig:
    """The data of a resumed run: where it was, or in the run's folder that was moved."""
    place = config.data.place
    own = config.run.folder / "data" / Path(place).name
    moved = not storage.exists(place) and own.is_dir()
    return replace(config.data, dir=str(own)) if moved else config.data


def _with_lineage(verb: Verb, config: TrainConfig, base: BaseRun) -> TrainConfig:
    """The configuration with the base run's path, step and commit."""
    stage = replace(
        config.stage,
        name=verb.name,
        data=tuple(_whole(place) for place in config.stage.data),
        base_step=base.step,
        base_commit=base.commit,
    )
    training = replace(config.training, init_from=str(base.path))
    return replace(config, stage=stage, training=training)


def _whole(place: str) -> str:
    """A path as an absolute one; names of tasks and addresses as they are."""
    path, at, times = place.rpartition("@")
    if not os.path.exists(path) or os.path.exists(place):
        path, at, times = place, "", ""
    return f"{os.path.abspath(path)}{at}{times}" if os.path.exists(path) else place


def _prepared(verb: Verb, setting: Setting) -> Prepared:
    """The data; on a shared disk the other processes find what the first one has made."""
    made = verb.data(setting) if setting.group.first else None
    setting.group.all_gather("prepared")
    return made or verb.data(setting)


def _derived(
    config: TrainConfig, data: TrainingData | None, tokenizer: Tokenizer
) -> tuple[TrainConfig, list[str]]:
    if data is not None:
        return data.derive(config)
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "padded_vocab_size": tokenizer.padded_vocab_size,
    }
    return derive(config, **sizes)


def _fit(verb: Verb, started: Started) -> dict[str, Any]:
    """Trains, reports, and says how to go on."""
    session, config = started.session, started.config
    with Loop(verb.stage(started), session) as loop:
        if session.group.first and started.format is not None:
            write_format(session.folder.path, started.format)
        outcome = loop.fit()
        summary: dict[str, Any] = {"finished": outcome.finished}
        if session.group.first:
            params = sum(leaf.size for leaf in jax.tree.leaves(loop.state.params))
            summary = write_report(
                session,
                started.data.describe()
                if started.data
                else ", ".join(config.stage.data) or str(config.rl.task),
                epochs=config.stage.epochs,
                params=params,
                baselines=None,
                finished=outcome.finished,
                checkpoint=outcome.checkpoint,
            )
    say_how_to_go_on(session, outcome)
    return summary

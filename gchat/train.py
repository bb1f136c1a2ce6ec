"""Pretraining: data, model and evaluation of a base model, handed to the loop.

    python -m gchat.train [CONFIG.yaml] [--group.field value …] [--resume]
        [--allow-restart | --extend] [--batch auto]
        [--coordinator HOST:PORT --num-processes N --process-id I]

The loop is in `run/loop.py`, the update in `train_step.py`.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gaia import parallel
from gaia.config import parse, to_dict
from gaia.errors import ConfigError, DataError, GaiaError, run_cli
from gaia.interrupt import raise_on_interrupt
from gaia.output import may_go_away
from gaia.processes.group import OPTIONS, Group, joined, take_options
from gaia.runtime import Machine, start
from gchat import applied
from gchat.config import CONFIG, TrainConfig, load
from gchat.evals.core.periodic import PeriodicCore
from gchat.evals.ngram import MAX_TOKENS, Baselines, ngram_baselines, score
from gchat.evals.periodic import Evaluator, validation_documents
from gchat.run import mirror
from gchat.run.fitting import fitted_for_all, take_batch
from gchat.run.folder import check_resumable, read_config
from gchat.run.loading import load_params
from gchat.run.loop import Loop, Stage, TrainingFailed
from gchat.run.report import write_report
from gchat.run.session import Outcome, Session
from gchat.run.training_data import TrainingData
from gchat.stage_config import VERBS, StageConfig
from gchat.tokenizer import FILE as TOKENIZER
from gchat.tokenizer import Tokenizer
from gchat.train_state import TrainState, abstract_state, graphdef, init_state
from gchat.train_step import changing_step, eval_rows, make_scorer, make_train_step

COMMAND = "python -m gchat.train"
_FLAGS = ("--resume", "--allow-restart", "--extend")
_OWN = (*_FLAGS, "--batch", *OPTIONS)
"""Options that are no field of the configuration."""


def pretrain(
    config: TrainConfig,
    machine: Machine,
    *,
    resume: bool = False,
    allow_restart: bool = False,
    extend: bool = False,
    auto_batch: bool = False,
    group: Group | None = None,
) -> dict[str, Any]:
    """Trains a base model to the end or to a stop.

    Args:
        config: what to train; derived here.
        machine: to train on.
        resume: go on from the newest intact checkpoint in the run's folder.
        allow_restart: with `resume`, start over where there is no checkpoint.
        extend: with `resume`, train more steps than the run was to have.
        auto_batch: choose the micro-batches by compiling (`gchat.run.fitting`).
        group: the processes of the run, each of which calls this.

    Returns:
        The summary (`finished` says whether the last step was reached).

    Raises:
        GaiaError: the data, the configuration or the checkpoint cannot be used.
        TrainingFailed: training could not go on, or its end could not be saved.
    """
    group = group or Group()
    _check_stage(config, resume)
    data = TrainingData(config.data)
    data.check_same(group)
    config, sentences = data.derive(_with_whole_address(config))
    if config.training.init_from is not None:
        sentence = _check_begun_from(config.training.init_from, data)
        sentences += [] if resume else [sentence]
    if auto_batch:
        config, said = fitted_for_all(config, group)
        sentences += said
    session = Session(
        config,
        machine,
        data.tokenizer,
        resume=resume,
        allow_restart=allow_restart,
        extend=extend,
        group=group,
        command=COMMAND,
    )
    for sentence in sentences + data.epochs_described(config) + data.warnings():
        print(sentence)
    with Loop(pretraining(config, data), session) as loop:
        outcome = loop.fit()
        summary = {"finished": outcome.finished}
        if group.first:
            params = sum(leaf.size for leaf in jax.tree.leaves(loop.state.params))
            summary = _report(session, data, outcome, params)
    say_how_to_go_on(session, outcome)
    return summary


def pretraining(config: TrainConfig, data: TrainingData) -> Stage:
    """The stage: next tokens of the data, validated in bits per byte.

    Raises:
        ConfigError: a size does not divide over the mesh, or a prompt does not fit.
    """
    mesh = parallel.make_mesh(config.mesh)
    graph = graphdef(config)
    scorer = make_scorer(graph, config, mesh)
    if config.eval.chat_every_steps:
        raise ConfigError(
            f"eval.chat_every_steps is {config.eval.chat_every_steps}, and a base model has seen "
            "no conversation",
            "leave it to the stages after pretraining",
        )
    core = None
    if config.eval.core_every_steps:
        core = PeriodicCore(config, data.tokenizer, graph, mesh)
        if config.run.target_core is not None and core.bundle.missing:
            raise ConfigError(
                f"run.target_core is {config.run.target_core} and {config.eval.core_bundle} has no "
                f"file for {len(core.bundle.missing)} tasks of CORE, so nothing can reach it",
                "leave it out, or use the whole bundle",
            )
        print(core.describe())
    elif config.run.target_core is not None:
        raise ConfigError(
            f"run.target_core is {config.run.target_core} and nothing evaluates CORE",
            "add --eval.core-every-steps N",
        )
    evaluator = Evaluator(
        config, data.tokenizer, graph, scorer, rows=eval_rows(mesh, config.model.seq_len)
    )
    return Stage(
        mesh=mesh,
        init=lambda: _first_state(config, mesh),
        blank=lambda: abstract_state(config, mesh),
        update=make_train_step(graph, config, mesh),
        update_at=changing_step(graph, config, mesh),
        batches=lambda index: data.loader(config, index, mesh),
        evaluate=evaluator.validate,
        sample=evaluator.sample,
        core=core.evaluate if core else None,
    )


def _check_stage(config: TrainConfig, resume: bool) -> None:
    """Refuses what other verbs train."""
    stage = config.stage
    if stage.name != "base" and resume:
        raise ConfigError(
            f"run.dir {str(config.run.folder)!r} is a run of stage {stage.name}",
            f"resume it with `gchat {VERBS[stage.name]}`",
        )
    if config.model.lora_rank:
        raise ConfigError(
            f"model.lora_rank is {config.model.lora_rank}, and adapters need a base to adapt",
            "use gchat midtrain, sft, dpo or rl",
        )
    for name, group in (("dpo", config.dpo), ("rl", config.rl)):
        if group != type(group)():
            raise ConfigError(f"an option of {name} is given", f"use gchat {name}, or leave it out")
    if stage != StageConfig():
        raise ConfigError(
            f"stage.name is {stage.name}, stage.data {stage.data}: groups of later stages",
            "use gchat midtrain, sft, dpo or rl, or leave out --stage",
        )


def _with_whole_address(config: TrainConfig) -> TrainConfig:
    """The configuration with an absolute path of the run to begin with, as its files keep it."""
    path = config.training.init_from
    if path is None:
        return config
    return replace(config, training=replace(config.training, init_from=os.path.abspath(path)))


def _check_begun_from(path: str, data: TrainingData) -> str:
    """One sentence on the run whose parameters this one begins with.

    Raises:
        DataError: the data was made with another tokenizer than that run's.
        CheckpointError: it was trained with ideas that this code lacks.
    """
    applied.check(Path(path) / CONFIG)
    own = Path(path) / TOKENIZER
    if own.exists() and (theirs := Tokenizer.load(own)).sha256 != data.tokenizer.sha256:
        raise DataError(
            f"training.init_from is {path!r}, whose tokenizer ({theirs.kind} "
            f"{theirs.sha256[:12]}) is not the data's ({data.tokenizer.kind} "
            f"{data.tokenizer.sha256[:12]})",
            f"prepare the data with --tokenizer {own}",
        )
    return f"begins with the newest parameters of {path}"


def _first_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The state before the first update: random parameters, or those of another run."""
    state, path = init_state(config, mesh), config.training.init_from
    if path is None:
        return state
    other = load_params(path, read_config(Path(path)), mesh, model=config.model)
    return state._replace(params=other.state)


def _report(session: Session, data: TrainingData, outcome: Outcome, params: int) -> dict[str, Any]:
    return write_report(
        session,
        data.describe(),
        epochs=data.epochs(session.config),
        params=params,
        baselines=_baselines_or_none(session.config, data) if outcome.finished else None,
        finished=outcome.finished,
        checkpoint=outcome.checkpoint,
    )


def _baselines_or_none(config: TrainConfig, data: TrainingData) -> Baselines | None:
    """The baselines; none, with a line, where the data cannot be read again: the run is done."""
    try:
        return _baselines(config, data)
    except (GaiaError, OSError) as error:
        print(f"no n-gram baselines in the report: {error}", flush=True)
        return None


def _baselines(config: TrainConfig, data: TrainingData) -> Baselines | None:
    """n-gram models of the tokens that the run saw, on the text it was validated on.

    None for a mixture.
    """
    if config.data.mixture:
        return None
    if data.text is not None:
        seen = data.seen(config, MAX_TOKENS)
        return score(*seen, validation_documents(config), data.tokenizer.token_bytes())
    return ngram_baselines(
        config.data.place,
        config.training.amounts.tokens,
        seq_len=config.model.seq_len,
        batch_size=config.training.amounts.batch_size,
        seed=config.training.seed,
        documents=validation_documents(config),
        packing=config.data.packing,
        cache=data.cache(config),
    )


def say_how_to_go_on(session: Session, outcome: Outcome) -> None:
    """Prints the command that resumes a stopped run.

    Raises:
        TrainingFailed: the last checkpoint is not on disk.
    """
    if not outcome.saved:
        raise TrainingFailed(
            f"the checkpoint of the last step, {outcome.step}, could not be written",
            "make room, then go on from the one before with --resume",
        )
    if not outcome.finished:
        steps = session.config.training.amounts.steps
        print(f"stopped after step {outcome.step} of {steps} and saved; go on with")
        print(f"  {session.resume_command}")


# ── The command line ────────────────────────────────────────────────────────────────────────────


def take_flags(args: list[str], *names: str) -> tuple[dict[str, bool], list[str]]:
    """Flags without a value, taken out of a command line: which are there, and the rest."""
    given = {name: name in args for name in names}
    return given, [arg for arg in args if arg not in names]


def given_config(args: list[str], *, resume: bool, prog: str) -> TrainConfig:
    """The configuration of a command line: of a new run, or of the one to resume.

    Raises:
        ConfigError: it cannot work, or `resume` names no run.
    """
    if not resume:
        return load(args, prog=prog, also=_OWN)
    named = bool(args) and not args[0].startswith("-")
    config = load(args, prog=prog, also=_OWN)
    if config.run.dir is None and not named:
        raise ConfigError("--resume names no run", "add --run-dir RUN")
    own = named and config.run.dir is None and Path(args[0]).name == CONFIG
    folder = Path(args[0]).parent if own else config.run.folder
    mirror.fetch(config.run.mirror, folder)
    check_resumable(folder)
    return read_config(folder, args[1:] if named else args, prog=prog)


def config_for_all(config: TrainConfig | None, group: Group) -> TrainConfig:
    """Process 0's configuration on every process: a plan depends on clocks and files there."""
    plain = group.broadcast(lambda: to_dict(config))
    if group.first and config is not None:
        return config
    return parse(TrainConfig, [], preset=plain)


def run(args: list[str], *, prog: str = COMMAND) -> dict[str, Any]:
    """Parses [CONFIG.yaml] --group.field value … [--resume [--allow-restart|--extend]], trains."""
    processes, args = take_options(args)
    auto_batch, args = take_batch(args)
    flags, args = take_flags(args, *_FLAGS)
    resume, restart, extend = flags["--resume"], flags["--allow-restart"], flags["--extend"]
    if (restart or extend) and not resume:
        flag = "--allow-restart" if restart else "--extend"
        raise ConfigError(f"{flag} is given without --resume", "add --resume")
    if auto_batch and resume:
        raise ConfigError(
            "--batch auto with --resume: a resumed run has its batches already", "leave it out"
        )
    with may_go_away(), joined(processes) as group:
        if group.count > 1:
            raise_on_interrupt()  # the others are told
        own = given_config(args, resume=resume, prog=prog) if group.first else None
        config = config_for_all(own, group)
        machine = start(matmul_precision=config.model.matmul_precision)
        return pretrain(
            config,
            machine,
            resume=resume,
            allow_restart=restart,
            extend=extend,
            auto_batch=auto_batch,
            group=group,
        )


if __name__ == "__main__":
    sys.exit(run_cli("gchat", run, sys.argv[1:]))

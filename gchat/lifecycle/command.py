"""`gchat speedrun`: all stages, one after another, or the trainer alone with `--stages base`."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gaia import runtime
from gaia.config import asks_for_help
from gaia.errors import ConfigError
from gaia.interrupt import raise_on_interrupt
from gaia.output import may_go_away
from gaia.processes.group import take_options
from gaia.writer_lock import WriterLock
from gchat import speedrun as base_stage
from gchat.config import ALIASES, CONFIG, TrainConfig, load
from gchat.lifecycle import questions, report
from gchat.lifecycle.recipe import PERSONA, STAGES, Speedrun, StageName, steps
from gchat.lifecycle.steps import run_all
from gchat.run.folder import write_atomically

STATE = "speedrun.json"
"""File of a speedrun's folder: what was asked for, and the time of each step."""
BASE_SHARE, ACCELERATOR_SHARE = 0.6, 0.85
"""Shares of given hours that the base stage plans with, on a CPU and on an accelerator. Without
them a CPU's base stage takes its own six minutes, and the others about three more."""

_OF_THE_FOLDER = ("--run.dir", "--run.name")
"""Options that say which speedrun goes on, by their full names."""


def main(args: list[str]) -> None:
    """Runs the stages that the command line asks for.

    Raises:
        GaiaError: one line naming what cannot work and the remedy.
    """
    own, rest = _split(args)
    if asks_for_help(TrainConfig, rest, ALIASES):
        base_stage.main(rest)
        return
    processes, _ = take_options(rest)
    hosts = processes.num_processes or int(os.environ.get("JAX_NUM_PROCESSES") or 1)
    resume = "--resume" in rest
    folder = folder_of(rest)
    alone = own.stages == ("base",) or (resume and not (folder / STATE).exists())
    if alone and (dropped := [name for name in own.typed if name != "--stages"]):
        raise ConfigError(
            f"{' '.join(dropped)} with the base stage alone: later stages give a model its name "
            "and chats",
            f"leave out {' '.join(dropped)}, or name more --stages",
        )
    if hosts > 1 and not alone:
        if own.stages:
            raise ConfigError(
                f"--stages {','.join(own.stages)} on {hosts} hosts",
                "use --stages base there, and the later stages' own commands after it",
            )
        print(f"{hosts} hosts: only the base stage; go on with `gchat midtrain` and `gchat sft`")
        alone = True
    if alone:
        base_stage.main(rest)
        return
    raise_on_interrupt()
    with may_go_away():
        all_stages(own, rest, folder, resume)


class _Own:
    """Options of the speedrun that the base stage does not know."""

    def __init__(self) -> None:
        self.stages: tuple[StageName, ...] = ()
        self.name, self.about = "Gaia", None
        self.chats: list[str] = []
        self.typed: list[str] = []
        """Names of those that were given."""


def _split(args: Sequence[str]) -> tuple[_Own, list[str]]:
    """Own options, and the words for the base stage.

    Raises:
        ConfigError: an unknown stage, or an option without a value.
    """
    own, rest, items = _Own(), list[str](), iter(args)
    for item in items:
        name, equals, value = item.partition("=")
        if name not in ("--stages", "--name", "--about", "--chats"):
            rest.append(item)
            continue
        value = value if equals else next(items, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"{name} has no value", "see --help")
        own.typed.append(name)
        if name == "--stages":
            own.stages = _stages(value)
        elif name == "--chats":
            own.chats.append(os.path.abspath(value))
        else:
            setattr(own, name[2:], value)
    check_files([*own.chats, *([own.about] if own.about else [])])
    return own, rest


def check_files(paths: Sequence[str]) -> None:
    """Raises ConfigError naming the file that is not there."""
    for path in paths:
        if not Path(path).is_file():
            raise ConfigError(f"{path} does not exist", "check the path")


def _stages(text: str) -> tuple[StageName, ...]:
    asked = text.split(",")
    unknown = [name for name in asked if name not in STAGES]
    if unknown:
        raise ConfigError(
            f"--stages names {unknown[0]!r}", f"use some of {','.join(STAGES)} with commas"
        )
    return tuple(stage for stage in STAGES if stage in asked)


def folder_of(args: Sequence[str]) -> Path:
    """Folder of the whole speedrun: --run-dir, or runs/NAME."""
    values: dict[str, str] = {}
    for word, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        values[ALIASES.get(name, name)] = value if equals else following
    if "--run.dir" in values:
        return Path(values["--run.dir"])
    if "--run.name" in values:
        return Path("runs") / values["--run.name"]
    preset = "cpu" if runtime.only_cpu() else "speedrun"
    named = [args[0]] if args and not args[0].startswith("-") else []
    return load(named, preset=preset).run.folder


def all_stages(own: _Own, rest: list[str], folder: Path, resume: bool) -> None:
    """Plans the stages, and runs what is not done."""
    if resume:
        asked = Speedrun(**_read(folder))
        if others := [*(name for name in own.typed if name != "--stages"), *_others(rest)]:
            raise ConfigError(
                f"{' '.join(others)} with --resume: a resumed speedrun has its plan already",
                "give --resume and --run-dir alone, or with --stages",
            )
        if own.stages:  # more of them
            more = tuple(s for s in STAGES if s in {*asked.stages, *own.stages})
            asked = replace(asked, stages=more)
    else:
        asked = _asked(own, rest, folder)
    todo = steps(asked, questions.write)
    if "--dry-run" in rest:
        base_stage.main(list(asked.base_args))
        print("then: " + ", ".join(step.name for step in todo[1:]))
        return
    if not resume and (folder / STATE).exists():
        raise ConfigError(
            f"run.dir {str(folder)!r} already holds a speedrun",
            "add --resume to go on with it, or choose another --run.name",
        )
    if not resume and (folder / CONFIG).exists() == ("base" in asked.stages):
        there = "already holds a run" if "base" in asked.stages else "holds no base run"
        raise ConfigError(
            f"run.dir {str(folder)!r} {there}",
            "choose another --run-dir, or leave out or add base in --stages",
        )
    if not resume and "base" in asked.stages:
        base_stage.check_words(list(asked.base_args))
    folder.mkdir(parents=True, exist_ok=True)
    with WriterLock(folder / ".speedrun.lock", f"the speedrun in {folder}"):
        _save(asked)
        persona = asked.made("persona").with_suffix(".md")
        persona.parent.mkdir(exist_ok=True)
        write_atomically(persona, PERSONA)
        finished = run_all(todo, asked.seconds, lambda: _save(asked))
    if not finished:
        print(f"stopped; go on with\n  bash gchat/speedrun.sh --resume --run-dir {folder}")
        return
    summary = report.write(asked)
    print(f"\nreport: {folder / report.REPORT}")
    for line in report.table(summary["stages"]):
        print(line)
    print(f"talk with it: .venv/bin/gchat chat --run {summary['run']}")


def _asked(own: _Own, rest: Sequence[str], folder: Path) -> Speedrun:
    """A new speedrun of a command line."""
    on_cpu = runtime.only_cpu() or "--allow-cpu" in rest
    offline = on_cpu or "--offline" in rest
    default: tuple[StageName, ...] = ("base", "mid", "sft", "chat")
    stages = own.stages or (default if offline else ("base", "core", "mid", "sft", "chat"))
    words = _without(rest, ("--run-dir", "--run.dir"))
    given = _value(words, "--hours")
    try:
        options = base_stage.Options(hours=None if given is None else float(given))
        hours, why = base_stage.budget(options, on_cpu)
    except ValueError:
        hours, why = 0.0, base_stage.CPU_DEFAULT  # the base stage says what is wrong with it
    if why != base_stage.CPU_DEFAULT:
        share = BASE_SHARE if on_cpu else ACCELERATOR_SHARE
        words = [*_without(words, ("--hours",)), "--hours", f"{hours * share:.4f}"]
    return Speedrun(
        folder, stages, offline, tuple(words), own.name, own.about and os.path.abspath(own.about),
        tuple(own.chats),
    )  # fmt: skip


def _others(args: Sequence[str]) -> list[str]:
    """Words of a resumed command line that neither name its folder nor say that it goes on.

    The first word may name a configuration, and by it the folder.
    """
    others, items = [], iter(args[1:] if args and not args[0].startswith("-") else args)
    for item in items:
        name, equals, _ = item.partition("=")
        name = name.replace("_", "-") if item.startswith("--") else item
        if ALIASES.get(name, name) in _OF_THE_FOLDER:
            if not equals:
                next(items, None)
        elif name not in ("--resume", "--allow-restart"):
            others.append(name)
    return others


def _without(args: Sequence[str], names: Sequence[str]) -> list[str]:
    kept, items = [], iter(args)
    for item in items:
        name, equals, _ = item.partition("=")
        if name.replace("_", "-") not in names:
            kept.append(item)
        elif not equals:
            next(items, None)
    return kept


def _value(args: Sequence[str], option: str) -> str | None:
    """The last value of an option; None where it is not given."""
    last = None
    for word, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == option:
            last = value if equals else following
    return last


def _save(asked: Speedrun) -> None:
    facts = asdict(asked) | {"folder": None, "about": asked.about}
    write_atomically(asked.folder / STATE, json.dumps(facts, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tuples = {name: tuple(facts[name]) for name in ("stages", "base_args", "chats")}
        return facts | tuples | {"folder": folder}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder / STATE} is damaged", "begin anew in another --run-dir"
        ) from None

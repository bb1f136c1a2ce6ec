"""The base stage of the one command: plan, corpus, tokenizer, shards, training, report.

    bash gchat/speedrun.sh [CONFIG.yaml] [--hours H] [--dry-run] [--resume] [--group.field value …]

On an accelerator: ClimbMix, and the largest depth that the plan says finishes within the hours.
On a plain CPU machine: the `cpu` preset and the offline corpus, and one line that says so. Never
a silent fallback on a machine that costs money.
"""

import contextlib
import math
import os
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gaia import runtime
from gaia.config import asks_for_help, load_preset, parse
from gaia.errors import ConfigError
from gaia.interrupt import raise_on_interrupt
from gaia.output import may_go_away
from gaia.processes.group import OPTIONS, Group, joined, take_options
from gchat.config import (
    ALIASES,
    CONFIG_DIR,
    TrainConfig,
    load,
    preset_path,
    typed_options,
)
from gchat.evals.periodic import an_opening
from gchat.ranges import check_ranges
from gchat.run.folder import check_free, check_resumable, read_config
from gchat.run_length import typed_lengths
from gchat.speedrun_plan import Plan
from gchat.tokenizer import Tokenizer
from gchat.train import config_for_all, pretrain

USAGE = """usage: bash gchat/speedrun.sh [CONFIG.yaml] [options] [--group.field value …]

From text to a model to chat with and its report, on whatever this machine is: base, midtraining,
fine-tuning, and on request reinforcement; or the base model alone.

  --stages A,B    some of base,core,mid,sft,chat,rl; default base,mid,sft,chat, and on an
                  accelerator CORE too; base alone is the trainer alone
  --name NAME     name that the model gives itself (default Gaia)
  --about FILE    what it knows about itself: docs/posttraining.md
  --chats FILE    conversations of your own, mixed into fine-tuning; may be repeated
  --hours H       budget of the whole command (default: until the machine's deadline in
                  GAIA_DEADLINE, else 3 on an accelerator and 0.1 on a CPU)
  --dry-run       print the plan; train nothing, download nothing
  --resume        continue the run in --run-dir (default runs/NAME)
  --allow-restart with --resume: start over where there is no checkpoint yet
  --offline       use the offline corpus, whatever the machine
  --allow-cpu     train on the CPU although JAX cannot use the accelerator present
  --debug         show a traceback instead of one line

  bash gchat/speedrun.sh --dry-run --hours 1
  bash gchat/speedrun.sh --depth 12 --run.name d12
  bash gchat/speedrun.sh gchat/configs/my_run.yaml --training.steps 200
  bash gchat/speedrun.sh --data.source text --data.input 'notes/*.md' --run.name notes

A data set in GAIA_DATA (from `gml run --data`) is used unless another is named.
Short names: --depth --batch-size --lr --warmup --max-steps --log-interval --data-dir
--checkpoint-dir --run-dir. All fields of the trainer:
"""
_FLAGS = ("--dry-run", "--resume", "--allow-cpu", "--offline", "--allow-restart")
_OF_ALL_STAGES = ("--stages", "--name", "--about", "--chats")  # lifecycle/ takes them out first
_OWN = (*_FLAGS, "--hours", *_OF_ALL_STAGES, *OPTIONS)
"""Options that are no field of the configuration."""

CPU_HOURS = 0.1
CPU_DEFAULT = "CPU default"
ACCELERATOR_HOURS = 3.0


@dataclass(frozen=True)
class Options:
    """Options of the speedrun itself; every `--group.field` of the trainer may follow."""

    hours: float | None = None
    """Budget of the whole command; default: until GAIA_DEADLINE, else 3, on a CPU 0.1."""
    dry_run: bool = False
    """Print the plan; train nothing, download nothing."""
    resume: bool = False
    """Continue the run in --run-dir (default runs/NAME)."""
    allow_cpu: bool = False
    """Train on the CPU although JAX cannot use the accelerator that is present."""
    offline: bool = False
    """Use the offline corpus, whatever the machine."""
    allow_restart: bool = False
    """With --resume: start over where there is no checkpoint yet."""

    def check(self) -> None:
        """Raises ConfigError for hours that are none, and for options without an effect."""
        if self.hours is not None and not 0 < self.hours < math.inf:
            raise ConfigError(f"--hours is {self.hours}", "use a number above 0")
        if self.allow_restart and not self.resume:
            raise ConfigError("--allow-restart is given without --resume", "add --resume")
        plans = {"--hours": self.hours, "--dry-run": self.dry_run, "--offline": self.offline}
        given = [name for name, value in plans.items() if value not in (None, False)]
        if self.resume and given:
            raise ConfigError(
                f"{' and '.join(given)} with --resume: a resumed run has its plan and data already",
                f"leave out {' and '.join(given)}",
            )


def speedrun(options: Options, args: list[str], group: Group) -> dict[str, Any] | None:
    """Runs the command and returns the summary, or None for a dry run.

    `args` are [CONFIG.yaml] and trainer options.

    With several processes, the plan is process 0's; each host prepares the data unless it is there.

    Raises:
        GaiaError: one line naming what cannot work and the remedy.
    """
    began = time.monotonic()
    machine = runtime.start(tell=False)  # said below, or allowed
    on_cpu = machine.platform == "cpu"
    hardware = runtime.accelerator_hardware()
    if on_cpu and hardware and not options.allow_cpu:
        raise ConfigError(
            f"this machine has {hardware}, but JAX sees only the CPU",
            "delete .venv and run again to reinstall, check the driver, or go on with --allow-cpu",
        )
    options.check()
    preset = "cpu" if on_cpu else "speedrun"
    config = load(args, preset=preset, prog="gchat/speedrun.sh", also=_OWN)
    if on_cpu and not (args and not args[0].startswith("-")):
        print("no accelerator here: training the `cpu` preset on the offline corpus")
    runtime.start(matmul_precision=config.model.matmul_precision, tell=False)  # known only now
    if options.offline:
        config = replace(config, data=replace(config.data, source="docs", input=None))
    elif os.environ.get("GAIA_DATA") and not (config.data.dir or config.data.input):
        # `gml run --data …` has brought a data set, or points to a bucket beside the machine.
        config = replace(config, data=replace(config.data, dir=os.environ["GAIA_DATA"]))
    if options.resume:
        check_resumable(config.run.folder)
        overrides = args[1:] if args and not args[0].startswith("-") else args
        own = read_config(config.run.folder, overrides, "gchat/speedrun.sh")
        return pretrain(
            config_for_all(own, group),
            machine,
            resume=True,
            allow_restart=options.allow_restart,
            group=group,
        )
    hours, why = budget(options, on_cpu)
    peak, peak_source = runtime.peak_flops(machine, config.model.compute_dtype)
    strict = why != CPU_DEFAULT
    deadline, asked = began + 3600 * hours, bool(typed_lengths(typed_options(args)))
    plan = Plan(config, machine, peak, deadline, strict=strict, length_asked=asked)
    plan.choose_size(fixed_depth=_sets_size(args, preset))
    plan.config = config_for_all(plan.config, group)
    plan.show(hours, why, peak_source)
    if options.dry_run:
        return None
    raise_on_interrupt()
    if group.first:
        check_free(plan.config)
        plan.prepare_data()
    group.all_gather("prepared")  # on a shared disk the others find it there
    if not group.first:
        plan.prepare_data()
    plan.fit_steps()
    return pretrain(config_for_all(plan.placed(), group), machine, group=group)


def main(args: list[str]) -> None:
    """Splits the speedrun's own options from the trainer's, runs, and says what to do next."""
    if asks_for_help(TrainConfig, args, ALIASES):
        print(USAGE)
    own, rest = _split(args)
    processes, rest = take_options(rest)
    options = parse(Options, own, prog="gchat/speedrun.sh")
    with may_go_away(), joined(processes) as group:
        if group.count > 1:
            raise_on_interrupt()  # the others are told
        summary = speedrun(options, rest, group)
    if summary and summary["finished"] and group.first:
        run = Path(summary["run_dir"])
        print(f"report: {run / 'report.md'}")
        tokenizer = Tokenizer.load(str(run / "tokenizer.json"))
        prompt = an_opening(read_config(run), tokenizer) or "The"
        words = ["--run", str(run), f"--prompt={prompt}"]
        print(f"try it: .venv/bin/gchat sample {shlex.join(words)}")


def check_words(args: list[str]) -> None:
    """Raises ConfigError where a word of the command line cannot be taken; does nothing else."""
    own, rest = _split(args)
    parse(Options, own, prog="gchat/speedrun.sh").check()
    preset = "cpu" if runtime.only_cpu() else "speedrun"
    words = take_options(rest)[1]
    check_ranges(load(words, preset=preset, prog="gchat/speedrun.sh", also=_OWN))


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """Own options, and the trainer's words."""
    own: list[str] = []
    rest: list[str] = []
    items = iter(args)
    for item in items:
        name, _, value = item.partition("=")
        if item in _FLAGS:
            own.append(item)
        elif item == "--extend":
            raise ConfigError(
                "--extend is an option of `gchat train`",
                "use gchat train --resume --extend --run-dir RUN --max-steps N",
            )
        elif name == "--hours":
            own += ["--hours", _number(value or next(items, ""))]
        else:
            rest.append(item)
    return own, rest


def _number(hours: str) -> str:
    try:
        float(hours)
    except ValueError:
        raise ConfigError(f"--hours is {hours!r}", "use a number of hours, e.g. 0.5") from None
    return hours


def _deadline(text: str) -> float:
    """Seconds since 1970 in GAIA_DEADLINE, which `gml run` sets."""
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(text)):
            return seconds
    raise ConfigError(
        f"GAIA_DEADLINE is {text!r}", "use seconds since 1970 (`date +%s`), or unset it"
    )


def budget(options: Options, on_cpu: bool) -> tuple[float, str]:
    """Hours for the whole command, and where the figure is from."""
    if options.hours is not None:
        return options.hours, "--hours"
    deadline = os.environ.get("GAIA_DEADLINE")
    if deadline:
        # A tenth, and at least five minutes, is left for the last save and the way home.
        left = (_deadline(deadline) - time.time()) / 3600
        hours = min(0.9 * left, left - 1 / 12)
        if hours <= 0:
            raise ConfigError(
                f"GAIA_DEADLINE leaves {left * 60:.0f} minutes on this machine",
                "extend it (`gml node extend`), or set --hours",
            )
        return hours, "this machine's deadline, less a reserve"
    return (CPU_HOURS, CPU_DEFAULT) if on_cpu else (ACCELERATOR_HOURS, "default")


def _sets_size(args: list[str], preset: str) -> bool:
    """Tells whether the user chose the size; says so where a file of theirs did."""
    sizes = ("--depth", "--model.depth", "--model.dim", "--model.aspect-ratio")
    if any(a.split("=")[0].replace("_", "-") in sizes for a in args):
        return True
    named = preset_path(args[0]) if args and not args[0].startswith("-") else None
    if named is None or named.resolve() == preset_path(preset).resolve():
        return False
    if not {"depth", "dim", "aspect_ratio"} & set(
        load_preset(named, CONFIG_DIR).get("model") or {}
    ):
        return False
    print(f"the depth is that of {named}: only {preset}.yaml leaves it to the hours")
    return True

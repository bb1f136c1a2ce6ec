"""The one command: plan, corpus, tokenizer, shards, training, report.

    bash gchat/speedrun.sh [CONFIG.yaml] [--hours H] [--dry-run] [--resume] [--group.field value …]

On an accelerator: ClimbMix, and the largest depth that the plan says finishes within the hours.
On a plain CPU machine: the `cpu` preset and the offline corpus, and one line that says so. Never
a silent fallback on a machine that costs money.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gaia import runtime, storage
from gaia.config import load_preset, parse
from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError
from gaia.hardware import chip_of_device_kind
from gaia.output import may_go_away
from gaia.processes.group import Group, joined, take_options
from gchat.config import (
    CONFIG_DIR,
    TrainConfig,
    derive,
    load,
    preset_path,
    price_of_machine,
)
from gchat.data.prepare import prepare
from gchat.model import GPTConfig
from gchat.model_shape import matmul_params
from gchat.run.folder import check_free, check_resumable, read_config
from gchat.scaling.estimate import (
    Estimate,
    estimate,
    overhead_seconds,
    placed,
    tokens_within,
)
from gchat.scaling.plan import vocabulary
from gchat.train import config_for_all, pretrain

USAGE = """usage: bash gchat/speedrun.sh [CONFIG.yaml] [options] [--group.field value …]

From text to a trained model and its report, on whatever this machine is.

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
CPU_HOURS = 0.1
CPU_DEFAULT = "CPU default"
LEAST_STEPS = 20  # fewer show nothing
ACCELERATOR_HOURS = 3.0
DEPTHS = tuple(range(4, 41, 2))  # what the plan chooses from
# On a CPU the tokens are few, and a model too large for them is worse than a small one that sees
# more: the plan takes the largest of these depths that gets so many tokens per matmul parameter
# (EXPERIMENTS.md, "The cpu preset").
CPU_DEPTHS = (2, 3, 4)
CPU_TOKENS_PER_PARAM = 0.5


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


def speedrun(options: Options, args: list[str], group: Group) -> dict[str, Any] | None:
    """Runs the command and returns the summary, or None for a dry run.

    `args` are [CONFIG.yaml] and trainer options.

    With several processes, the plan is process 0's; each host prepares the data unless it is there.

    Raises:
        GaiaError: one line naming what cannot work and the remedy.
    """
    began = time.monotonic()
    machine = runtime.start()
    on_cpu = machine.platform == "cpu"
    hardware = runtime.accelerator_hardware()
    if on_cpu and hardware and not options.allow_cpu:
        raise ConfigError(
            f"this machine has {hardware}, but JAX sees only the CPU",
            "delete .venv and run again to reinstall, check the driver, or go on with --allow-cpu",
        )
    if options.hours is not None and options.hours <= 0:
        raise ConfigError(f"--hours is {options.hours}", "use a number above 0")
    config = load(args, preset="cpu" if on_cpu else "speedrun", prog="gchat/speedrun.sh")
    if on_cpu and not (args and not args[0].startswith("-")):
        print("no accelerator here: training the `cpu` preset on the offline corpus")
    runtime.start(matmul_precision=config.model.matmul_precision)  # known only now
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
    hours, why = _budget(options, on_cpu)
    peak, peak_source = runtime.peak_flops(machine, config.model.compute_dtype)
    strict = why != CPU_DEFAULT
    plan = Plan(config, machine, peak, began + 3600 * hours, strict=strict)
    plan.choose_size(fixed_depth=_sets_size(args))
    if named := _preset_with_size(args):
        print(f"size: {named} sets it; without that file the plan chooses a depth for the hours")
    plan.config = config_for_all(plan.config, group)
    plan.show(hours, why, peak_source)
    if options.dry_run:
        return None
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
    if {"-h", "--help"} & set(args):
        print(USAGE)
    own: list[str] = []
    rest: list[str] = []
    items = iter(args)
    for item in items:
        name, _, value = item.partition("=")
        if item in ("--dry-run", "--resume", "--allow-cpu", "--offline", "--allow-restart"):
            own.append(item)
        elif name == "--hours":
            own += ["--hours", _number(value or next(items, ""))]
        else:
            rest.append(item)
    processes, rest = take_options(rest)
    options = parse(Options, own, prog="gchat/speedrun.sh")
    with may_go_away(), joined(processes) as group:
        summary = speedrun(options, rest, group)
    if summary and summary["finished"] and group.first:
        run = Path(summary["run_dir"])
        print(f"report: {run / 'report.md'}")
        print(f'try it: .venv/bin/gchat sample --run {run} --prompt "Return the"')


def _number(hours: str) -> str:
    try:
        float(hours)
    except ValueError:
        raise ConfigError(f"--hours is {hours!r}", "use a number of hours, e.g. 0.5") from None
    return hours


def _budget(options: Options, on_cpu: bool) -> tuple[float, str]:
    """Hours for the whole command, and where the figure is from."""
    if options.hours is not None:
        return options.hours, "--hours"
    deadline = os.environ.get("GAIA_DEADLINE")
    if deadline:
        # A tenth, and at least five minutes, is left for the last save and the way home.
        left = (float(deadline) - time.time()) / 3600
        hours = min(0.9 * left, left - 1 / 12)
        if hours <= 0:
            raise ConfigError(
                f"GAIA_DEADLINE leaves {left * 60:.0f} minutes on this machine",
                "extend it (`gml node extend`), or set --hours",
            )
        return hours, "this machine's deadline, less a reserve"
    return (CPU_HOURS, CPU_DEFAULT) if on_cpu else (ACCELERATOR_HOURS, "default")


def _sets_size(args: list[str]) -> bool:
    sizes = ("--depth", "--model.depth", "--model.dim", "--model.aspect-ratio")
    typed = any(a.split("=")[0].replace("_", "-") in sizes for a in args)
    return typed or _preset_with_size(args) is not None


def _preset_with_size(args: list[str]) -> str | None:
    """The preset that is named on the command line, where it sets the model's size."""
    if not args or args[0].startswith("-"):
        return None
    model = load_preset(preset_path(args[0]), CONFIG_DIR).get("model") or {}
    return args[0] if {"depth", "dim", "aspect_ratio"} & set(model) else None


class Plan:
    """Plan of a training: sizes and steps that fit the machine and the hours."""

    def __init__(
        self,
        config: TrainConfig,
        machine: runtime.Machine,
        peak: float,
        deadline: float,
        *,
        strict: bool,
    ) -> None:
        if config.data.dir is None and (config.data.source == "text") != bool(config.data.input):
            raise ConfigError(
                f"data.source is {config.data.source} and data.input is {config.data.input!r}",
                "give both --data.source text and --data.input PATH, or neither",
            )
        self._given, self._strict = config, strict
        self.config, self._machine, self._peak, self._deadline = config, machine, peak, deadline

    def _vocab(self) -> tuple[int, int]:
        return vocabulary(self._given)

    def _seconds_left(self) -> float:
        return self._deadline - time.monotonic() - overhead_seconds(self._machine, self._peak)

    def _estimate(self, config: TrainConfig) -> tuple[TrainConfig, list[str], Estimate]:
        vocab, padded = self._vocab()
        derived, said = derive(config, vocab_size=vocab, padded_vocab_size=padded)
        derived = placed(derived, self._machine)
        return derived, said, estimate(derived, self._machine, self._peak)

    def placed(self) -> TrainConfig:
        """The configuration with the micro-batches and rematerialisation that fit the machine."""
        derived, _, _ = self._estimate(self.config)
        return replace(
            self.config,
            model=replace(self.config.model, remat=derived.model.remat),
            training=replace(self.config.training, grad_accum=derived.training.grad_accum),
        )

    def choose_size(self, *, fixed_depth: bool) -> None:
        """The largest depth that the time can feed, unless the user chose one; then its steps.

        An accelerator must finish the whole schedule of a depth; a CPU, whose schedule is
        shortened to the time, must reach CPU_TOKENS_PER_PARAM.
        """
        on_cpu = self._machine.platform == "cpu"
        if not fixed_depth:
            depths = CPU_DEPTHS if on_cpu else DEPTHS
            models = [replace(self._given.model, depth=depth) for depth in depths]
            enough = self._is_fed if on_cpu else self._ends_in_time
            fitting = [model for model in models if enough(model)]
            if not fitting and not on_cpu:
                raise ConfigError(f"not even depth {depths[0]} finishes in time", "raise --hours")
            self.config = replace(self._given, model=fitting[-1] if fitting else models[0])
        if on_cpu or fixed_depth:
            self.fit_steps()

    def _ends_in_time(self, model: GPTConfig) -> bool:
        try:
            _, _, cost = self._estimate(replace(self._given, model=model))
        except ConfigError:  # does not fit the memory, or does not divide over the mesh
            return False
        return cost.seconds <= self._seconds_left()

    def _is_fed(self, model: GPTConfig) -> bool:
        derived, _, _ = self._estimate(replace(self._given, model=model))
        tokens = tokens_within(derived.model, self._machine, self._peak, self._seconds_left())
        return tokens >= CPU_TOKENS_PER_PARAM * matmul_params(derived.model)

    def fit_steps(self) -> None:
        """Shortens the schedule to the time that is left, where steps are not set outright."""
        if self._given.training.steps is not None:
            return
        derived, _, cost = self._estimate(self.config)
        limit = int(self._seconds_left() * cost.tokens / cost.seconds)
        wanted = self._given.training.tokens or cost.tokens
        rows = derived.training.amounts.batch_size * derived.model.seq_len
        if limit < LEAST_STEPS * rows and self._strict:
            raise ConfigError(
                f"only {max(0, limit // rows)} steps fit into the hours", "raise --hours"
            )
        # A very slow machine takes its time, unless the user limited it.
        tokens = max(LEAST_STEPS * rows, min(wanted, limit) // rows * rows)
        training = replace(self.config.training, tokens=tokens)
        self.config = replace(self.config, training=training)

    def show(self, hours: float, why: str, peak_source: str) -> None:
        """Prints the plan: hours and dollars first."""
        config, said, cost = self._estimate(self.config)
        m, price = self._machine, self._price()
        print(
            f"plan: {hours:.2f} h ({why}), at most ${price * hours:.2f} at ${price:.2f}/h; "
            f"training about {cost.seconds / 60:.1f} min of it"
        )
        print(
            f"machine: {m.devices} x {m.device_kind}, {self._peak / 1e12:.3g} TFLOP/s "
            f"({peak_source})"
        )
        for sentence in said:
            print(sentence)
        print(
            f"cost: {cost.params / 1e6:,.1f}M parameters, {cost.flops:.3g} FLOP, about "
            f"{cost.memory_bytes / 2**30:.1f} GiB per device (estimate; grad_accum "
            f"{config.training.grad_accum}, remat {config.model.remat})"
        )
        source = config.data.dir or f"{config.data.source} -> {self.data_dir()}"
        print(f"data: {source}, tokenizer {config.data.tokenizer}")
        print(f"files: {config.run.folder}/ (config.yaml, metrics.jsonl, checkpoints/, report.md)")

    def _price(self) -> float:
        given = self.config.run.price_per_hour
        if given is not None:
            return given
        if price := price_of_machine():
            return price
        chip = chip_of_device_kind(self._machine.device_kind)
        listed = chip.price() if chip else None
        if chip is None or listed is None:
            return 0.0
        return listed.on_demand * self._machine.devices / chip.devices_per_chip

    def data_dir(self) -> Path:
        """Folder of the speedrun's data set; its name says what it holds."""
        data = self.config.data
        name = [data.source, data.tokenizer]
        if data.tokenizer == "bpe":
            name.append(str(data.vocab_size))
        if data.source == "climbmix":
            name.append(str(self._shards()))
        if data.input:
            name.append(Path(data.input).stem)
        return storage.home() / "data" / "-".join(name)

    def _shards(self) -> int:
        """ClimbMix shards that hold the tokens of the run once (250M characters, 4.8 per token)."""
        config, _, cost = self._estimate(self.config)
        return config.data.shards or max(1, -(-int(cost.tokens * 4.8) // 250_000_000))

    def prepare_data(self) -> None:
        """Makes the data set unless one was given (or lies there from an earlier run)."""
        config = replace(self.config, run=replace(self.config.run, price_per_hour=self._price()))
        data = config.data
        if data.dir is None:
            out = self.data_dir()
            prepare(
                source=data.source,
                input=data.input,
                out=out,
                tokenizer=data.tokenizer,
                vocab_size=data.vocab_size,
                shards=self._shards() if data.source == "climbmix" else 8,
            )
            data = replace(data, dir=str(out))
        load_manifest(data.place)
        self.config = replace(config, data=data)

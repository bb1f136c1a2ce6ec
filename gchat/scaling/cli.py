"""`gchat plan` and `gchat dashboard`: arguments in, a table or one JSON object out."""

import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gaia import runtime
from gaia.config import asks_for_help, parse
from gaia.errors import ConfigError
from gaia.extras import install
from gchat.config import ALIASES, TrainConfig, load, typed_options
from gchat.model_shape import all_params
from gchat.scaling.largest import largest
from gchat.scaling.plan import Plan, derived, describe, describe_rows, make_plan
from gchat.scaling.search import REMATS, best, search
from gchat.scaling.sku import Fleet, parse_fleet
from gchat.scaling.verify import check_can_verify, compile_run

USAGE = """usage: gchat plan [CONFIG.yaml] --sku NAME [options] [--group.field value …]

Says what a run asks of a slice: memory by part, time and cost, and whether it fits; no accelerator
needed. NAME: v6e-8, v6e-2x4, v5p-128, v5e-256, tpu7x-64, 2*v6e-256, 8xH100, 1xH200, rtx4090, …

  --verify      compile the real training step and evaluation for that TPU topology: the
                compiler's memory
  --memory-only with --verify: stop when the compiler has laid out memory, a tenth of its time
  --search      compile (memory only) until the fastest batch, remat and mesh that fit are found
  --largest     the deepest model that fits; a typed --batch-size is then worked on at once,
                unless --training.grad-accum says otherwise
  --leave SIZE  memory of each device to leave free for other programs: 1GB, 512MiB
  --json        print one JSON object
  --spot        cost at spot prices
  --debug       show a traceback instead of one line

  gchat plan speedrun --sku v6e-8
  gchat plan --sku v5p-128 --depth 32 --training.tokens-per-param 20 --json
  gchat plan my.yaml --sku v6e-8 --mesh.tensor 2 --verify
  gchat plan --sku rtx4070ti-super --batch-size 3 --leave 1GB --largest

Without CONFIG.yaml: the `speedrun` preset. Every option of the trainer may follow."""
_FLAGS = ("--verify", "--memory-only", "--search", "--largest", "--json", "--spot")
_VALUES = ("--sku", "--leave")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """Options of `gchat plan` itself; every `--group.field` of the trainer may follow."""

    sku: str = ""
    """Name of the slice or machine to plan for: v6e-8, v5p-128, 8xH100, 2*v6e-256, …"""
    verify: bool = False
    """Compile the real training step and evaluation for that TPU topology."""
    memory_only: bool = False
    """With verify: stop when the compiler has laid out memory."""
    search: bool = False
    """Compile (memory only) until the fastest batch, remat and mesh that fit are found."""
    largest: bool = False
    """Find the deepest model that fits."""
    leave: str = "0"
    """Memory of each device to leave free for other programs: 1GB, 512MiB, or a number of bytes."""
    json: bool = False
    """Print one JSON object."""
    spot: bool = False
    """Cost at spot prices."""

    def check(self, typed: set[str]) -> None:
        """Raises ConfigError for options that exclude one another.

        Args:
            typed: full names of the trainer's options on the same command line.
        """
        if not self.sku:
            raise ConfigError("--sku is missing", "name what to plan for, e.g. --sku v6e-8")
        if self.largest and self.search:
            raise ConfigError("--largest and --search are both given", "give one of them")
        if self.memory_only and not self.verify:
            raise ConfigError("--memory-only is given without --verify", "add --verify")
        if self.largest and "--model.depth" in typed:
            raise ConfigError(
                "--depth is given with --largest, which chooses it", "leave out one of them"
            )

    def fleet(self) -> Fleet:
        """The machines to plan for, with the memory that is to stay free."""
        fleet, left = parse_fleet(self.sku), _bytes(self.leave)
        if left >= fleet.limit_bytes:
            raise ConfigError(
                f"--leave {self.leave} leaves nothing of the "
                f"{fleet.limit_bytes / 2**30:.2f} GiB that a program may use on {fleet.name}",
                "leave less",
            )
        return replace(fleet, left_bytes=left)


@dataclass(frozen=True)
class DashboardOptions:
    """Serve the scaling dashboard, or write it as a static page."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8501
    """Port to listen on; 0 takes a free one."""
    export: str | None = None
    """Folder for a static page that can be published, instead of serving: DIR/index.html."""
    plan: str = ""
    """With export: address of a plan on the dashboard, or its query: depth=24&sku=v6e-8."""


def plan_main(args: list[str]) -> None:
    """Runs `gchat plan`.

    Raises:
        GaiaError: one line naming what cannot work and the remedy.
    """
    if asks_for_help(TrainConfig, args, ALIASES):
        print(USAGE)
        return
    options, rest = _split(args)
    given = load(rest, preset="speedrun", prog="gchat plan", also=(*_FLAGS, *_VALUES))
    typed = typed_options(rest)
    options.check(typed)
    fleet = options.fleet()
    if options.verify or options.search:
        check_can_verify(fleet)
    runtime.stay_on_host()  # nothing here runs on an accelerator
    if options.largest:
        _plan_largest(given, fleet, options, typed)
        return
    config, said = derived(given)
    if options.search:
        chosen = search(config, fleet, report=_say_tried)
        _show(chosen, None, said, options)
        return
    plan = make_plan(config, fleet)
    if not plan.fits and not _sets_memory(rest):
        plan, sentences = _made_to_fit(plan)
        said += sentences
    if options.verify:
        compiled = compile_run(plan.config, fleet, memory_only=options.memory_only)
        plan = replace(plan, compiled=compiled)
    _show(plan, best(config, fleet), said, options)


def _plan_largest(given: TrainConfig, fleet: Fleet, options: PlanOptions, typed: set[str]) -> None:
    """Shows the deepest model that fits, and those with less recomputation."""
    remats = (given.model.remat,) if "--model.remat" in typed else REMATS
    fixed = bool({"--training.batch-size", "--training.grad-accum"} & typed)
    plans = largest(given, fleet, remats=remats, rows_at_once=fixed)
    first = plans[0]
    if options.verify:
        answer = compile_run(first.config, fleet, memory_only=options.memory_only)
        first = replace(first, compiled=answer)
    if options.json:
        rows = [_size(plan) for plan in plans]
        print(json.dumps(first.to_json() | {"best": None, "largest": rows}))
        return
    print(f"largest model on {fleet.name} with {_left(fleet)}, by what is recomputed:")
    for plan in plans:
        size = _size(plan)
        print(
            f"  depth {size['depth']}, width {size['dim']}: {size['params'] / 1e6:,.1f}M "
            f"parameters with remat {size['remat']}, {describe_rows(plan)}, "
            f"{size['tokens_per_second']:,.0f} tokens/s"
        )
    _show(first, first, [], options)


def _size(plan: Plan) -> dict[str, Any]:
    model = plan.config.model
    return {
        "depth": model.depth,
        "dim": model.sizes.dim,
        "params": all_params(model),
        "remat": model.remat,
        "grad_accum": plan.config.training.grad_accum,
        "peak_bytes": plan.peak_bytes,
        "tokens_per_second": plan.time.tokens_per_second,
    }


def _left(fleet: Fleet) -> str:
    said = f"{fleet.limit_bytes / 2**30:.2f} GiB for the program"
    return said + (f" ({fleet.left_bytes / 2**30:.2f} left free)" if fleet.left_bytes else "")


def _bytes(text: str) -> int:
    """Reads a size such as 1GB, 1.5 GiB or 1000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in _UNITS:
        raise ConfigError(f"--leave is {text!r}", "use a size, e.g. 1GB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def dashboard_main(args: list[str]) -> None:
    """Runs `gchat dashboard`: until it is interrupted, or until the page is written."""
    options = parse(DashboardOptions, args, prog="gchat dashboard")
    if options.plan and options.export is None:
        raise ConfigError("--plan is given without --export", "add --export DIR")
    runtime.stay_on_host()
    try:
        from gchat.scaling.dashboard import controls_of, serve
        from gchat.scaling.export import export
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the dashboard needs {error.name}", install("train", "dashboard")
        ) from None
    if options.export is None:
        serve(options.host, options.port)
        return
    page = export(Path(options.export), controls_of(options.plan))
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, one file that asks no network")


def _sets_memory(args: list[str]) -> bool:
    """Tells whether a command line says itself how a step is cut to fit."""
    names = {arg.partition("=")[0].replace("_", "-") for arg in args}
    return bool(names & {"--model.remat", "--training.grad-accum"})


def _made_to_fit(plan: Plan) -> tuple[Plan, list[str]]:
    """The same rows and mesh in micro-batches, and with recomputation, that are estimated to fit.

    As the speedrun does it. Unchanged where nothing fits.
    """
    fitting = best(plan.config, plan.fleet, fixed_mesh=True)
    if fitting is None:
        return plan, []
    chosen = fitting.config
    return fitting, [
        f"memory: grad_accum {chosen.training.grad_accum} and remat {chosen.model.remat} were "
        f"chosen, for grad_accum {plan.config.training.grad_accum} and remat "
        f"{plan.config.model.remat} do not fit"
    ]


def _split(args: list[str]) -> tuple[PlanOptions, list[str]]:
    own: list[str] = []
    rest: list[str] = []
    items = iter(args)
    for item in items:
        name, _, value = item.partition("=")
        if item in _FLAGS:
            own.append(item)
        elif name in _VALUES:
            own.append(f"{name}={value or next(items, '')}")
        else:
            rest.append(item)
    return parse(PlanOptions, own, prog="gchat plan"), rest


def _say_tried(plan: Plan) -> None:
    compiled = plan.compiled
    seconds = f", compiled in {compiled.compile_seconds:.0f} s" if compiled else ""
    print(f"{describe(plan)}: {plan.why}{seconds}", file=sys.stderr, flush=True)


def _show(plan: Plan, best: Plan | None, said: list[str], options: PlanOptions) -> None:
    if options.json:
        answer = plan.to_json()
        answer["best"] = best.to_json() if best else None
        print(json.dumps(answer))
        return
    for sentence in said:
        print(sentence)
    print(f"{plan.fleet.name}: {plan.fleet.chips} x {plan.fleet.chip.name}, {describe(plan)}")
    print(f"  {plan.why}")
    parts = {name: size for name, size in asdict(plan.memory).items() if size}
    shown = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    print(f"  HBM in GiB, estimated: {shown}")
    time = plan.time
    print(
        f"  step {time.seconds:.3f} s, {time.tokens_per_second:,.0f} tokens/s, "
        f"MFU {100 * time.mfu:.0f}%, most of it {time.bound_by} (roofline)"
    )
    print(f"  {_budget(plan, spot=options.spot)}")
    for note in plan.notes:
        print(f"  note: {note}")
    if best is None and not options.search:
        print("  nothing of this model is estimated to fit: take more chips")
    elif best is not None and describe(best) != describe(plan):
        print(f"  best: {describe(best)}: step {best.time.seconds:.3f} s, {best.why}")
        print(f"        {_budget(best, spot=options.spot)}")


def _budget(plan: Plan, *, spot: bool) -> str:
    training = plan.config.training
    cost = plan.cost_usd(spot=spot)
    price = "no price known" if cost is None else f"${cost:,.2f}{' spot' if spot else ''}"
    return (
        f"{training.amounts.tokens / 1e9:,.2f}B tokens in {training.steps:,} steps: "
        f"{plan.seconds / 3600:,.2f} h, {price}"
    )

"""`gchat plan` and `gchat dashboard`: arguments in, a table or one JSON object out."""

import json
import sys
from dataclasses import asdict, dataclass, replace

from gaia.config import asks_for_help, parse
from gaia.errors import ConfigError
from gaia.extras import install
from gchat.config import ALIASES, TrainConfig, load
from gchat.scaling.plan import Plan, derived, describe, make_plan
from gchat.scaling.search import best, search
from gchat.scaling.sku import parse_fleet
from gchat.scaling.verify import check_can_verify, compile_step

USAGE = """usage: gchat plan [CONFIG.yaml] --sku NAME [options] [--group.field value …]

Says what a run asks of a slice: memory by part, time and cost, and whether it fits; no accelerator
needed. NAME: v6e-8, v6e-2x4, v5p-128, v5e-256, tpu7x-64, 2*v6e-256, 8xH100, 1xH200, …

  --verify      compile the real training step for that TPU topology: the compiler's memory
  --memory-only with --verify: stop when the compiler has laid out memory, a tenth of its time
  --search      compile (memory only) until the fastest batch, remat and mesh that fit are found
  --json        print one JSON object
  --spot        cost at spot prices
  --debug       show a traceback instead of one line

  gchat plan speedrun --sku v6e-8
  gchat plan --sku v5p-128 --depth 32 --training.tokens-per-param 20 --json
  gchat plan my.yaml --sku v6e-8 --mesh.tensor 2 --verify

Without CONFIG.yaml: the `speedrun` preset. Every option of the trainer may follow."""
_FLAGS = ("--verify", "--memory-only", "--search", "--json", "--spot")


@dataclass(frozen=True)
class PlanOptions:
    """Options of `gchat plan` itself; every `--group.field` of the trainer may follow."""

    sku: str = ""
    """Name of the slice or machine to plan for: v6e-8, v5p-128, 8xH100, 2*v6e-256, …"""
    verify: bool = False
    """Compile the real training step for that TPU topology."""
    memory_only: bool = False
    """With verify: stop when the compiler has laid out memory."""
    search: bool = False
    """Compile (memory only) until the fastest batch, remat and mesh that fit are found."""
    json: bool = False
    """Print one JSON object."""
    spot: bool = False
    """Cost at spot prices."""


@dataclass(frozen=True)
class DashboardOptions:
    """Serve the scaling dashboard."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8501
    """Port to listen on; 0 takes a free one."""


def plan_main(args: list[str]) -> None:
    """Runs `gchat plan`.

    Raises:
        GaiaError: one line naming what cannot work and the remedy.
    """
    if asks_for_help(TrainConfig, args, ALIASES):
        print(USAGE)
        return
    options, rest = _split(args)
    if not options.sku:
        raise ConfigError("--sku is missing", "name what to plan for, e.g. --sku v6e-8")
    fleet = parse_fleet(options.sku)
    if options.verify or options.search:
        check_can_verify(fleet)
    config, said = derived(load(rest, preset="speedrun", prog="gchat plan"))
    if options.search:
        chosen = search(config, fleet, report=_say_tried)
        _show(chosen, None, said, options)
        return
    plan = make_plan(config, fleet)
    if not plan.fits and not _sets_memory(rest):
        plan, sentences = _made_to_fit(plan)
        said += sentences
    if options.verify:
        compiled = compile_step(plan.config, fleet, memory_only=options.memory_only)
        plan = replace(plan, compiled=compiled)
    _show(plan, best(config, fleet), said, options)


def dashboard_main(args: list[str]) -> None:
    """Runs `gchat dashboard` until it is interrupted."""
    options = parse(DashboardOptions, args, prog="gchat dashboard")
    try:
        from gchat.scaling.dashboard import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the dashboard needs {error.name}", install("train", "dashboard")
        ) from None
    serve(options.host, options.port)


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
        elif name == "--sku":
            own += ["--sku", value or next(items, "")]
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

"""The fastest batch, rematerialisation and mesh that fit a fleet: estimated, or by compiling.

The rows of an optimizer step are part of the recipe and stay as they are; what is chosen is how
many of them a device works on at once (`training.grad_accum` follows), what the backward pass
recomputes, and the mesh.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from gaia.errors import ConfigError
from gaia.runtime import Machine
from gchat.config import TrainConfig
from gchat.scaling.layout import Layout, check_layout, rows_of_device
from gchat.scaling.plan import Plan, make_plan
from gchat.scaling.sku import Fleet, fleet_of_machine
from gchat.scaling.verify import Compiled, compile_run

REMATS = ("none", "dots", "attention", "full")
"""Offloading is left out: how fast the host takes what is sent to it is not in the roofline."""
MOST_TENSOR = 8
HOPELESS = 1.25
"""Share of the memory; programs that are estimated above it are not compiled."""
MOST_COMPILES = 6


def candidates(config: TrainConfig, fleet: Fleet, *, fixed_mesh: bool = False) -> list[Plan]:
    """Every way to run a derived configuration on a fleet, the fastest first.

    Args:
        config: derived.
        fleet: what it runs on.
        fixed_mesh: keep the configuration's mesh; choose rows and rematerialisation only.

    Raises:
        ConfigError: nothing divides over the devices.
    """
    plans = []
    meshes = [make_plan(config, fleet).layout] if fixed_mesh else list(_layouts(config, fleet))
    for layout in meshes:
        for accum in accumulations(config, layout):
            for remat in REMATS:
                tried = replace(
                    config,
                    mesh=layout.as_mesh(),
                    model=replace(config.model, remat=remat),
                    training=replace(config.training, grad_accum=accum),
                )
                plans.append(make_plan(tried, fleet))
    if not plans:
        raise ConfigError(
            f"training.batch_size {config.training.batch_size} does not divide over the "
            f"{fleet.devices} devices of {fleet.name} in any mesh",
            "choose a multiple of the devices, or a smaller slice",
        )
    return sorted(plans, key=lambda plan: plan.time.seconds)


def best(config: TrainConfig, fleet: Fleet, *, fixed_mesh: bool = False) -> Plan | None:
    """The fastest plan that is estimated to fit, or None."""
    plans = candidates(config, fleet, fixed_mesh=fixed_mesh)
    return next((plan for plan in plans if plan.fits), None)


def _memory_of(config: TrainConfig, fleet: Fleet) -> Compiled:
    return compile_run(config, fleet, memory_only=True)


def search(
    config: TrainConfig,
    fleet: Fleet,
    *,
    compiler: Callable[[TrainConfig, Fleet], Compiled] = _memory_of,
    report: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """The fastest plan whose memory the compiler can lay out; asks about the fastest first.

    Args:
        config: derived.
        fleet: TPU slices.
        compiler: asked about each.
        report: told each plan as it comes back.

    Raises:
        ConfigError: none fits.
    """
    hopeful = [p for p in candidates(config, fleet) if p.peak_bytes <= HOPELESS * p.limit_bytes]
    refused: list[Plan] = []
    for plan in hopeful:
        if len(refused) == MOST_COMPILES:
            break
        # What asks for more than something that was refused is refused too.
        if any(plan.memory.total >= no.memory.total for no in refused):
            continue
        answered = replace(plan, compiled=compiler(plan.config, fleet))
        report(answered)
        if answered.fits:
            return answered
        refused.append(plan)
    raise ConfigError(
        f"nothing of this model fits {fleet.name} ({len(refused)} programs compiled)",
        "take more chips or a smaller model",
    )


def fit_hint(config: TrainConfig, machine: Machine) -> str:
    """One sentence on what to change after RESOURCE_EXHAUSTED on a machine.

    Args:
        config: derived; the one that did not fit.
        machine: what it ran on.
    """
    fleet = fleet_of_machine(machine)
    if fleet is None:
        return "lower training.batch_size or raise training.grad_accum"
    try:
        failed = make_plan(config, fleet)
        plans = candidates(config, fleet, fixed_mesh=True)
    except ConfigError as error:
        return str(error)
    # The estimate may have said that it fits; what is proposed must ask for clearly less.
    limit = min(failed.limit_bytes, 0.9 * failed.memory.total)
    fitting = next((plan for plan in plans if plan.memory.total <= limit), None)
    if fitting is None:
        return (
            f"even one row per device with model.remat full needs about "
            f"{min(p.memory.total for p in plans) / 2**30:.1f} GiB of "
            f"{failed.limit_bytes / 2**30:.1f}: take more devices or a smaller model"
        )
    training, rows = fitting.config.training, rows_of_device(fitting.config, fitting.layout)
    return (
        f"{rows} row{'s' if rows > 1 else ''} per device would fit: --training.grad-accum "
        f"{training.grad_accum} --model.remat {fitting.config.model.remat} (about "
        f"{fitting.memory.total / 2**30:.1f} of {failed.limit_bytes / 2**30:.1f} GiB, an estimate)"
    )


def _layouts(config: TrainConfig, fleet: Fleet) -> Iterator[Layout]:
    """Meshes of the fleet over which the configuration divides."""
    per_slice = fleet.devices // fleet.slices
    for tensor in _powers(min(MOST_TENSOR, per_slice)):
        for sequence in _powers(per_slice // tensor):
            rest = per_slice // tensor // sequence
            if tensor * sequence * rest != per_slice:
                continue
            for inner in _powers(rest):
                layout = Layout(fleet.slices * inner, rest // inner, sequence, tensor)
                if layout.devices == fleet.devices and _divides(config, layout):
                    yield layout


def _divides(config: TrainConfig, layout: Layout) -> bool:
    one_step = replace(config, training=replace(config.training, grad_accum=1))
    try:
        check_layout(one_step, layout)
    except ConfigError:
        return False
    # Parts of a row shorter than this are all communication.
    return config.model.seq_len // layout.sequence >= 512 or layout.sequence == 1


def accumulations(config: TrainConfig, layout: Layout) -> list[int]:
    """Micro-batches of a step: powers of two that leave whole rows on every device."""
    rows = config.training.amounts.batch_size // layout.row_groups
    return [count for count in _powers(rows) if rows % count == 0]


def _powers(most: int) -> list[int]:
    return [2**i for i in range(max(1, most).bit_length())]

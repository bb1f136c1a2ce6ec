"""The largest model that fits a machine: the deepest, for each way to recompute.

Width, heads and hidden size follow from the depth, as in training; everything else is as given.
"""

from collections.abc import Sequence
from dataclasses import replace

from gaia.errors import ConfigError
from gchat.config import TrainConfig
from gchat.scaling.plan import Plan, derived, make_plan
from gchat.scaling.search import REMATS, accumulations
from gchat.scaling.sku import Fleet

MOST_DEPTH = 256


def largest(
    config: TrainConfig,
    fleet: Fleet,
    *,
    remats: Sequence[str] = REMATS,
    rows_at_once: bool = False,
) -> list[Plan]:
    """The deepest model that is estimated to fit with each rematerialisation, the largest first.

    Args:
        config: as a preset and the command line say, not derived; its depth is replaced.
        fleet: what the model is to fit.
        remats: choices of `model.remat` to try.
        rows_at_once: take `training.grad_accum` as it is; else a step is split as far as it takes.

    Raises:
        ConfigError: no depth fits, or none divides over the devices.
    """
    deepest = [_deepest(config, fleet, remat, rows_at_once=rows_at_once) for remat in remats]
    fitting = [plan for plan in deepest if plan is not None]
    if not fitting:
        raise ConfigError(
            f"not even a model of depth 1 is estimated to fit {fleet.name} "
            f"({fleet.limit_bytes / 2**30:.2f} GiB per device)",
            "lower --batch-size, --model.seq-len or the vocabulary",
        )
    return sorted(fitting, key=lambda plan: (-plan.config.model.depth, plan.time.seconds))


def _deepest(config: TrainConfig, fleet: Fleet, remat: str, *, rows_at_once: bool) -> Plan | None:
    """The deepest plan with this rematerialisation that fits; None where none does."""

    def plan_at(depth: int) -> Plan | None:
        model = replace(config.model, depth=depth, remat=remat)
        whole, _ = derived(replace(config, model=model))
        plan = make_plan(whole, fleet)
        if rows_at_once:
            return plan if plan.fits else None
        for accum in accumulations(whole, plan.layout):
            split = replace(whole, training=replace(whole.training, grad_accum=accum))
            if (plan := make_plan(split, fleet)).fits:
                return plan
        return None

    low, high = 0, MOST_DEPTH + 1  # memory grows with depth: the answer lies between them
    best: Plan | None = None
    refusal: ConfigError | None = None
    while high - low > 1:
        middle = depth = (low + high) // 2
        plan, divides = None, False
        while depth > low:  # the nearest below that divides over the mesh and the pattern
            try:
                plan, divides = plan_at(depth), True
                break
            except ConfigError as error:
                refusal, depth = error, depth - 1
        if not divides:
            low = middle
        elif plan is not None:
            best, low = plan, middle
        else:
            high = depth
    if best is None and refusal is not None and low == MOST_DEPTH:
        raise refusal
    return best

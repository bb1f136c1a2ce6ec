"""The roofline against published throughputs (`published.toml`)."""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gaia.optim import OptimConfig
from gaia.parallel import MeshConfig
from gchat.config import TrainConfig, TrainingConfig, derive
from gchat.model import GPTConfig
from gchat.scaling.layout import layout_of
from gchat.scaling.roofline import step_time
from gchat.scaling.sku import parse_fleet


@dataclass(frozen=True)
class Checked:
    """One published point and the estimate for it."""

    name: str
    sku: str
    published: float
    """Tokens per second and chip."""
    estimated: float
    """The same from the roofline."""
    chosen: bool
    """True for points that the shares of the roofline were chosen on."""
    source: str

    @property
    def error(self) -> float:
        """Error of the estimated step time, as a share of the published one."""
        return self.published / self.estimated - 1


@functools.cache
def points() -> tuple[Checked, ...]:
    """Every published point with its estimate."""
    text = resources.files("gchat.scaling").joinpath("published.toml").read_text("utf-8")
    return tuple(_check(point) for point in tomllib.loads(text)["point"])


def _check(point: dict[str, Any]) -> Checked:
    fleet = parse_fleet(point["sku"])
    replicated = point.get("replicated", False)
    mesh = MeshConfig(replica=fleet.devices, fsdp=1) if replicated else MeshConfig()
    accum = point.get("grad_accum", 1)
    vocab = point["model"]["vocab_size"]
    config, _ = derive(
        TrainConfig(
            # What the backward pass recomputes beside products: attention and elementwise work.
            model=GPTConfig(remat="full" if point["recomputed"] else "none", **point["model"]),
            optim=OptimConfig(name=point.get("optimizer", "adamw"), warmup_steps=0),
            training=TrainingConfig(
                batch_size=point["rows_per_device"] * fleet.devices * accum,
                grad_accum=accum,
                steps=1,
            ),
            mesh=mesh,
        ),
        vocab_size=vocab,
        padded_vocab_size=-(-vocab // 128) * 128,
    )
    time = step_time(
        config,
        layout_of(config, fleet),
        fleet,
        recomputed=point["recomputed"],
        extra_flops_per_token=point.get("extra_flops", 0.0),
    )
    return Checked(
        name=point["name"],
        sku=point["sku"],
        published=point["tokens_per_s"],
        estimated=time.tokens_per_second / fleet.chips,
        chosen=point["chosen"],
        source=point["source"],
    )

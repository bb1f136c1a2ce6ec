"""Makes `calibration.json` again: compiles its rows, and fits the memory estimate to part of them.

    python -m gchat.scaling.calibrate                 compile the rows that are missing, then fit
    python -m gchat.scaling.calibrate --again         compile every row
    python -m gchat.scaling.calibrate --only d24      rows whose name begins so
    python -m gchat.scaling.calibrate --fit           only fit

Each row is written as soon as it is there. Needs libtpu (`pip install -e '.[aot]'`) and no TPU.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from gaia.config import parse
from gaia.optim import OptimConfig
from gaia.parallel import MeshConfig
from gchat.config import TrainConfig, TrainingConfig, derive
from gchat.model import GPTConfig
from gchat.scaling.calibration import TABLE, Factors, Row, read_rows, table
from gchat.scaling.layout import layout_of
from gchat.scaling.memory import moment_bytes, parts_of
from gchat.scaling.sku import parse_fleet
from gchat.scaling.verify import Compiled, compile_step

PATH = Path(__file__).parent / TABLE
# Where the search for factors starts, and how far each may go: the arrays exist, so the compiler
# can pad and double them but not make them vanish.
START = Factors(
    gradients=1.0, saved=1.0, layer=1.0, gathered=1.0, chunk=1.0, head=1.0, update=1.5, constant=5e7
)
LEAST, MOST = 0.3, 3.0
"""Bounds of a factor, as shares of its starting value."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    again: bool = False
    """Compile every row, also those in the table."""
    only: str = ""
    """Rows whose names begin so; several are separated by commas."""
    fit: bool = False
    """Only fit."""


def config_of(row: Row) -> TrainConfig:
    """The derived configuration of a row."""
    shape = dict(row.shape)
    vocab = shape.pop("vocab", 50304)
    optimizer = shape.pop("optimizer", "muon")
    accum = shape.pop("grad_accum", 1)
    chunk = shape.pop("loss_chunk", 4096)
    mesh = MeshConfig(**{k: shape.pop(k) for k in ("replica", "tensor", "sequence") if k in shape})
    fleet = parse_fleet(row.sku)
    if fleet.slices > 1:
        mesh = replace(mesh, replica=fleet.slices)
    sizes = mesh.sizes(fleet.devices)
    rows = row.rows_per_device * sizes["replica"] * sizes["fsdp"] * accum
    config, _ = derive(
        TrainConfig(
            model=GPTConfig(remat=row.remat, **shape),
            optim=OptimConfig(name=optimizer, newton_schulz_dtype="bfloat16", warmup_steps=1),
            training=TrainingConfig(batch_size=rows, grad_accum=accum, steps=10, loss_chunk=chunk),
            mesh=mesh,
        ),
        vocab_size=vocab,
        padded_vocab_size=-(-vocab // 128) * 128,
    )
    return config


def estimate_of(row: Row, factors: Factors) -> float:
    """Estimated peak bytes of a row."""
    config, fleet = config_of(row), parse_fleet(row.sku)
    parts = parts_of(config, layout_of(config, fleet), fleet.chip.key)
    state = parts.params + parts.optimizer + factors.constant
    return state + max(moment_bytes(parts, factors).values())


def fit(rows: list[Row]) -> Factors:
    """The factors with the least squared relative error on the rows marked `fit`.

    A random search from fixed seeds: the maximum over moments has kinks, and there are few rows.
    """
    chosen = [row for row in rows if row.role == "fit" and row.peak_bytes]
    prepared = []
    for row in chosen:
        config, fleet = config_of(row), parse_fleet(row.sku)
        parts = parts_of(config, layout_of(config, fleet), fleet.chip.key)
        prepared.append((parts, row.peak_bytes or 0))
    names = [f.name for f in fields(Factors)]
    start = np.array([getattr(START, name) for name in names])

    def loss(values: np.ndarray) -> float:
        f = Factors(**dict(zip(names, map(float, values), strict=True)))
        total = 0.0
        for parts, peak in prepared:
            state = parts.params + parts.optimizer + f.constant
            total += ((state + max(moment_bytes(parts, f).values())) / peak - 1) ** 2
        # Where the rows do not say, stay near the sizes as written.
        return total + 3e-3 * float(np.sum(np.log(values / start) ** 2))

    rng = np.random.default_rng(0)
    best, least = start, loss(start)
    for scale in np.geomspace(0.3, 0.003, 4000):
        tried = np.clip(
            best * np.exp(scale * rng.normal(size=len(names))), LEAST * start, MOST * start
        )
        if (error := loss(tried)) < least:
            best, least = tried, error
    return Factors(**{n: round(float(v), 4) for n, v in zip(names, best, strict=True)})


def write(rows: list[Row], factors: Factors) -> None:
    """Replaces the table."""
    packages = ("jax", "jaxlib", "libtpu")
    content = {
        "command": "python -m gchat.scaling.calibrate",
        "versions": {name: _version(name) for name in packages},
        "factors": asdict(factors),
        "rows": [row.to_json() for row in rows],
    }
    lines = json.dumps(content | {"rows": []}, indent=1)
    body = ",\n  ".join(json.dumps(row) for row in content["rows"])
    text = lines.replace('"rows": []', f'"rows": [\n  {body}\n ]') + "\n"
    partial = PATH.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, PATH)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _compiled(row: Row, answer: Compiled) -> Row:
    return replace(
        row,
        peak_bytes=answer.peak_bytes,
        fits=answer.fits,
        compile_seconds=round(answer.compile_seconds, 1),
    )


def main(args: list[str]) -> None:
    """Compiles, fits, writes."""
    options = parse(Options, args, prog="python -m gchat.scaling.calibrate")
    named = tuple(options.only.split(","))
    for row in read_rows()[0]:
        wanted = row.name.startswith(named) and (options.again or row.peak_bytes is None)
        if options.fit or not wanted:
            continue
        answer = compile_step(config_of(row), parse_fleet(row.sku), memory_only=True)
        # Another process may have written its rows meanwhile.
        table.cache_clear()
        rows, factors = read_rows()
        write([_compiled(r, answer) if r.name == row.name else r for r in rows], factors)
        print(f"{row.name}: {answer.peak_bytes / 2**30:.3f} GiB", flush=True)
    table.cache_clear()
    rows, _ = read_rows()
    factors = fit(rows)
    write(rows, factors)
    for row in rows:
        if row.peak_bytes:
            estimated = estimate_of(row, factors)
            print(
                f"{row.role:5} {row.name:28} {row.peak_bytes / 2**30:7.3f} GiB, estimated "
                f"{estimated / 2**30:7.3f} ({100 * (estimated / row.peak_bytes - 1):+.1f}%)"
            )


if __name__ == "__main__":
    main(sys.argv[1:])

"""The committed table of compiled programs, and the factors fitted to part of it.

`calibration.json` holds both; `python -m gchat.scaling.calibrate` makes them again.
"""

import functools
import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Literal

TABLE = "calibration.json"


@dataclass(frozen=True)
class Factors:
    """The compiler's share of each part of `memory.Parts`: factors, and bytes for `constant`."""

    gradients: float
    saved: float
    layer: float
    gathered: float
    chunk: float
    head: float
    update: float
    constant: float


@dataclass(frozen=True)
class Row:
    """One program: what was compiled, and the compiler's answer."""

    name: str
    role: Literal["fit", "check"]
    """`fit`: the factors are fitted to it; `check`: it checks them."""
    sku: str
    rows_per_device: int
    remat: Any
    shape: dict[str, Any]
    """Fields of GPTConfig; also vocab, optimizer, grad_accum, loss_chunk and mesh axes."""
    peak_bytes: int | None = None
    fits: bool | None = None
    compile_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types, as in the file."""
        return asdict(self)


@functools.cache
def table() -> dict[str, Any]:
    """The file as it is: `rows`, `factors`, `versions`, `command`."""
    return json.loads(resources.files("gchat.scaling").joinpath(TABLE).read_text("utf-8"))


def read_rows() -> tuple[list[Row], Factors]:
    """The rows and the factors."""
    return [Row(**row) for row in table()["rows"]], Factors(**table()["factors"])


@functools.cache
def factors() -> Factors:
    """The fitted factors; GPUs take the TPU's, for nothing was fitted on them."""
    return Factors(**table()["factors"])

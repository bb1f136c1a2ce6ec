"""Cards in machines of one's own: what a plan may be made for, and nobody rents."""

import re

from gaia.errors import ConfigError
from gaia.hardware import Sku, chip_key, chips

MOST_CARDS = 8
"""Cards that one machine of one's own may hold."""


def card(name: str) -> Sku | None:
    """Reads a number of cards in a machine of one's own, `rtx4090` or `2xRTX4090`; else None.

    Raises:
        ConfigError: more of them than a machine holds.
    """
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?([a-z][a-z0-9_ -]*)", name.strip().lower())
    key = match and chip_key(re.sub(r"[_ ]", "-", match[2]))
    if not match or not key or key not in chips() or not chips()[key].owned:
        return None
    count = int(match[1] or 1)
    if not 1 <= count <= MOST_CARDS:
        raise ConfigError(f"{name!r} asks for {count} cards", f"use 1 to {MOST_CARDS}")
    return Sku(
        name=f"{count}x{key.upper()}",
        chip=chips()[key],
        topology="",
        hosts=1,
        chips_per_host=count,
        gce_machine_type="",
        tpu_type="",
        lambda_type="",
        runtime="",
        gke_accelerator="",
        zones=(),
        flex_zones=(),
    )

"""Machines that a plan is made for: equal slices of one TPU generation, or equal GPU machines.

A name is one that `gaia.hardware.sku` reads (`v6e-8`, `v5p-4x4x4`, `8xH100`), a card of one's own
(`rtx4090`, `2xRTX4090`), a number of them (`2*v6e-256`; for TPUs also `2xv6e-256`), or a sum
(`v6e-256+v6e-256`).
"""

import re
from dataclasses import dataclass

from gaia.errors import ConfigError
from gaia.hardware import Chip, Sku, card, chip_of_device_kind, chips, sku
from gaia.runtime import Machine

UNKNOWN_SHARE = 0.90
"""Share of a device's memory, where no compiler says what a program may take. GPUs: the
share that JAX's allocator is told to take (XLA_PYTHON_CLIENT_MEM_FRACTION=0.9)."""


@dataclass(frozen=True)
class Fleet:
    """Equal slices (TPU) or machines (GPU) that one job runs on."""

    name: str
    """The name as a person writes it; parses back to the same fleet."""
    chip: Chip
    slices: int
    """Slices joined by the data-centre network; for GPUs, machines."""
    chips_per_slice: int
    hosts_per_slice: int
    topology: str
    """ICI topology of a slice, such as "2x4"; "" for GPUs and where it is not known."""
    left_bytes: int = 0
    """Bytes of each device that a plan leaves free, beside what the runtime keeps for itself."""

    @property
    def chips(self) -> int:
        """Chips in all slices."""
        return self.slices * self.chips_per_slice

    @property
    def devices(self) -> int:
        """`jax.device_count()` over all slices."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int:
        """Machines in all slices."""
        return self.slices * self.hosts_per_slice

    @property
    def is_tpu(self) -> bool:
        """True where the TPU compiler can be asked about it."""
        return self.chip.kind == "tpu"

    @property
    def limit_bytes(self) -> int:
        """Bytes of one device that a program may use."""
        known = self.chip.program_hbm_bytes or int(self.chip.hbm_per_device * UNKNOWN_SHARE)
        return max(0, known - self.left_bytes)

    def price_per_hour(self, *, spot: bool = False) -> float | None:
        """Lowest list price of all chips together, US dollars per hour; None where not known."""
        price = self.chip.price(spot=spot)
        if price is None:
            return None
        each = price.spot if spot else price.on_demand
        return None if each is None else each * self.chips


def fleet_of(item: Sku, slices: int = 1) -> Fleet:
    """`slices` of something one can rent."""
    name = item.name if slices == 1 else f"{slices}*{item.name}"
    return Fleet(name, item.chip, slices, item.chips, item.hosts, item.topology)


def parse_fleet(text: str) -> Fleet:
    """Reads the name of a fleet.

    Raises:
        ConfigError: a name is not known (the nearest are named), or the parts are of different
            generations or sizes.
    """
    items: list[Sku] = []
    for part in text.split("+"):
        count, name = _multiple(part.strip())
        items += [_named(name)] * count
    first = items[0]
    keys = dict.fromkeys(item.chip.key for item in items)
    if len(keys) > 1:
        raise ConfigError(
            f"{text!r} mixes chip generations ({', '.join(keys)})",
            "one job runs on one generation: choose one of them",
        )
    names = dict.fromkeys(item.name for item in items)
    if len(names) > 1:
        raise ConfigError(
            f"{text!r} mixes sizes ({', '.join(names)})", "use equal slices, e.g. 2*v6e-256"
        )
    return fleet_of(first, len(items))


def _named(name: str) -> Sku:
    """A card of one's own, or something one can rent."""
    known = card(name)
    if known is None and "rtx" in name.lower():
        # An A6000 is an RTX card that one rents: `sku` knows it, and what it does not is a typo.
        try:
            return sku(name)
        except ConfigError:
            cards = ", ".join(key for key, chip in chips().items() if chip.owned)
            raise ConfigError(f"card {name!r} is not known", f"use one of {cards}") from None
    return known or sku(name)


def _multiple(part: str) -> tuple[int, str]:
    match = re.fullmatch(r"(\d+)\s*\*\s*(.+)", part) or re.fullmatch(r"(\d+)x((?:v|tpu)\d.*)", part)
    if not match:
        return 1, part
    if not 1 <= int(match[1]) <= 1024:
        raise ConfigError(f"{part!r} asks for {match[1]} slices", "use 1 to 1024")
    return int(match[1]), match[2]


def fleet_of_machine(machine: Machine) -> Fleet | None:
    """This process's devices, taken as one slice; None on a CPU or a chip we do not know."""
    chip = chip_of_device_kind(machine.device_kind)
    if chip is None:
        return None
    chips = max(1, machine.devices // chip.devices_per_chip)
    name = f"{chips} x {chip.name}"
    return Fleet(name, chip, 1, chips, machine.process_count, "")

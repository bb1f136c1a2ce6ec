"""Chip, slice and price facts, read once from the dated `hardware.toml`; standard library only.

`gml` (which must not import jax) and `gchat plan` both read from here, so each fact exists once.
Units: FLOP/s, bytes, bytes per second, US dollars per chip-hour. Sources stand in the TOML.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from gaia.errors import ConfigError


@dataclass(frozen=True)
class Price:
    """A list price of one chip for one hour, in US dollars. `spot` is None where not known.

    `chips`: size of the machine to which alone it applies; 0 for all sizes.
    """

    provider: str
    region: str
    on_demand: float
    spot: float | None
    date: str
    source: str
    chips: int = 0


@dataclass(frozen=True)
class Chip:
    """One accelerator chip as it is sold and billed.

    `devices_per_chip` is what JAX shows (TPU7x shows its two TensorCores as two devices);
    `cores_per_chip` is what Google's names count for chips whose `suffix_counts` is "cores".
    `program_hbm_bytes` is what the compiler has for a program on one device, 0 where not known.
    `link_bandwidth` is ICI, NVLink or PCIe per chip, both directions summed, bytes/s;
    `dcn_bandwidth` the data-centre network's per chip, one way, bytes/s, 0 where not known.
    `owned` cards stand in people's own machines: `card()` reads them, no cloud here rents them.
    """

    key: str
    name: str
    kind: str
    bf16_flops: float
    hbm_bytes: int
    program_hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    devices_per_chip: int
    cores_per_chip: int
    suffix_counts: str
    aliases: tuple[str, ...]
    device_kinds: tuple[str, ...]
    source: str
    note: str
    owned: bool
    prices: tuple[Price, ...]

    @property
    def flops_per_device(self) -> float:
        """Peak bf16 FLOP/s of what JAX counts as one device."""
        return self.bf16_flops / self.devices_per_chip

    @property
    def hbm_per_device(self) -> int:
        """Memory in bytes of what JAX counts as one device."""
        return self.hbm_bytes // self.devices_per_chip

    def price(
        self,
        *,
        spot: bool = False,
        region: str | None = None,
        provider: str | None = None,
        chips: int = 0,
    ) -> Price | None:
        """The cheapest matching list price, or None where none is known.

        Without `provider`, Google and Lambda come before any other: a reference price of another
        cloud is used only where those have none. `chips` is the machine's size: a
        price for just this size comes before one for all.
        """
        prices = [
            p
            for p in self.prices
            if (region is None or p.region in ("", region))
            and (provider is None or p.provider == provider)
            and (p.spot is not None or not spot)
            and p.chips in (0, chips)
        ]
        sized = {(p.provider, p.region) for p in prices if p.chips}
        prices = [p for p in prices if p.chips or (p.provider, p.region) not in sized]
        if provider is None and any(p.provider in ("google", "lambda") for p in prices):
            prices = [p for p in prices if p.provider in ("google", "lambda")]
        return min(prices, key=lambda p: (p.spot if spot else p.on_demand) or 0.0, default=None)


@dataclass(frozen=True)
class Sku:
    """Something one can rent: a TPU slice or a GPU machine.

    Attributes:
        name: canonical name, `v6e-8` or `8xH100`.
        topology: ICI topology such as "2x4" ("" for GPUs).
        hosts: machines in it; chips_per_host: chips in each.
        gce_machine_type: Compute Engine machine type ("" where Google does not sell it).
        tpu_type: the TPU API's accelerator type ("" for GPUs and TPU7x).
        lambda_type: Lambda's name ("" where Lambda does not sell it).
        aws_type: EC2's instance type ("" where AWS does not sell it).
        runtime: software version for the TPU API.
        gke_accelerator: value of GKE's `cloud.google.com/gke-tpu-accelerator` label.
        zones, flex_zones: Google zones known to offer it, and those with flex-start.
    """

    name: str
    chip: Chip
    topology: str
    hosts: int
    chips_per_host: int
    gce_machine_type: str
    tpu_type: str
    lambda_type: str
    runtime: str
    gke_accelerator: str
    zones: tuple[str, ...]
    flex_zones: tuple[str, ...]
    aws_type: str = ""

    @property
    def sellers(self) -> tuple[str, ...]:
        """Clouds that gml drives and that sell this size."""
        sold = {
            "google": self.gce_machine_type or self.tpu_type,
            "lambda": self.lambda_type,
            "aws": self.aws_type,
        }
        return tuple(name for name, there in sold.items() if there)

    @property
    def chips(self) -> int:
        """Chips in all hosts together."""
        return self.hosts * self.chips_per_host

    @property
    def devices(self) -> int:
        """`jax.device_count()` on the whole of it."""
        return self.chips * self.chip.devices_per_chip

    @property
    def bf16_flops(self) -> float:
        """Peak bf16 FLOP/s of the whole."""
        return self.chips * self.chip.bf16_flops

    @property
    def hbm_bytes(self) -> int:
        """Accelerator memory of the whole, bytes."""
        return self.chips * self.chip.hbm_bytes

    def price_per_hour(
        self, *, spot: bool = False, region: str | None = None, provider: str | None = None
    ) -> float | None:
        """List price of the whole in US dollars per hour; None where no price is known.

        Without `provider` of the clouds that sell this size, or of any other where none does.
        """
        names = (
            [provider]
            if provider
            else [*self.sellers]
            or sorted({p.provider for p in self.chip.prices} - {"google", "lambda", "aws"})
        )
        size = self.chips_per_host
        offers = [self.chip.price(spot=spot, region=region, provider=n, chips=size) for n in names]
        known = [o for o in offers if o is not None]
        price = min(known, key=lambda o: (o.spot if spot else o.on_demand) or 0.0, default=None)
        if price is None:
            return None
        per_chip = price.spot if spot else price.on_demand
        return None if per_chip is None else per_chip * self.chips


@functools.cache
def _table() -> dict:
    return tomllib.loads(
        resources.files("gaia").joinpath("hardware.toml").read_text(encoding="utf-8")
    )


def dated() -> str:
    """The day on which the table was last checked, ISO format."""
    return _table()["dated"]


@functools.cache
def chips() -> dict[str, Chip]:
    """All known chips by key (`v6e`, `h100`, …)."""
    prices: dict[str, list[Price]] = {}
    for block in _table()["prices"]:
        for key, provider, region, on_demand, spot, *chips in block["rows"]:
            prices.setdefault(key, []).append(
                Price(
                    provider,
                    region,
                    on_demand,
                    spot or None,
                    block["date"],
                    block["source"],
                    chips[0] if chips else 0,
                )
            )
    return {
        key: Chip(
            key=key,
            name=row["name"],
            kind=row["kind"],
            bf16_flops=row["bf16_flops"],
            hbm_bytes=row["hbm_bytes"],
            program_hbm_bytes=int(row.get("program_hbm_gib", 0) * 2**30),
            hbm_bandwidth=row["hbm_bandwidth"],
            link_bandwidth=row["link_bandwidth"],
            dcn_bandwidth=row.get("dcn_bandwidth", 0.0),
            devices_per_chip=row["devices_per_chip"],
            cores_per_chip=row.get("cores_per_chip", 1),
            suffix_counts=row.get("suffix_counts", "chips"),
            aliases=tuple(row.get("aliases", ())),
            device_kinds=tuple(row["device_kinds"]),
            source=row["source"],
            note=row.get("note", ""),
            owned=row.get("owned", False),
            prices=tuple(prices.get(key, ())),
        )
        for key, row in _table()["chips"].items()
    }


@functools.cache
def skus() -> dict[str, Sku]:
    """All known slices and GPU machines by canonical name, small to large within a chip."""
    skus: dict[str, Sku] = {}
    for key, table in _table()["slices"].items():
        for row in table["rows"]:
            skus[row[0]] = _slice(key, *row)
    gpus, aws = _table()["gpus"], dict(_table()["aws"]["rows"])
    for name, key, count, machine, lambda_type in gpus["rows"]:
        zones = tuple(gpus["zones"]) if machine else ()
        skus[name] = Sku(
            name=name,
            chip=chips()[key],
            topology="",
            hosts=1,
            chips_per_host=count,
            gce_machine_type=machine,
            tpu_type="",
            lambda_type=lambda_type,
            runtime="",
            gke_accelerator="",
            zones=zones,
            flex_zones=zones,
            aws_type=aws.get(name, ""),
        )
    return skus


def _slice(key: str, name: str, topology: str, hosts: int, per_host: int, machine: str) -> Sku:
    table = _table()["slices"][key]
    number = name.rsplit("-", 1)[1]
    return Sku(
        name=name,
        chip=chips()[key],
        topology=topology,
        hosts=hosts,
        chips_per_host=per_host,
        gce_machine_type=machine,
        # The TPU API never served TPU7x: an empty runtime says so.
        tpu_type=f"{table.get('tpu_prefix', key)}-{number}" if table["runtime"] else "",
        lambda_type="",
        runtime=table["runtime"],
        gke_accelerator=table["gke_accelerator"],
        zones=tuple(table["zones"]),
        flex_zones=tuple(table.get("flex_zones", ())),
    )


def chip_of_device_kind(kind: str) -> Chip | None:
    """The chip behind `jax.Device.device_kind`, or None (a CPU, or one we do not know).

    Only exact names: `TPU v4 lite` is not a TPU v4, and a MIG slice is not an H100.
    """
    wanted = kind.strip().lower()
    for chip in chips().values():
        if wanted in (known.lower() for known in chip.device_kinds):
            return chip
    return None


def sku(name: str) -> Sku:
    """Reads a name of something one can rent.

    Accepts `v6e-8`, `v5litepod-8`, `v6e-2x4` (topology), `v5p-4x2` (read as 4x2x1 where that
    exists), `v5p-128` (v4, v5p and tpu7x suffixes count cores), `8xH100`, `h200`,
    `gpu_8x_h100_sxm5` (Lambda), `ct6e-standard-4t`, `a3-highgpu-8g` (Compute Engine) and
    `p5.48xlarge` (EC2).

    Raises:
        ConfigError: the name means nothing; it names the nearest that do.
    """
    text = name.strip()
    lowered = text.lower()
    for item in skus().values():
        single = item.hosts == 1 and lowered in (item.gce_machine_type, item.aws_type)
        if lowered and (lowered in (item.name.lower(), item.tpu_type, item.lambda_type) or single):
            return item
    if match := re.fullmatch(r"(?:(\d+)\s*x\s*)?([a-z][a-z0-9_-]*)", lowered):
        key = chip_key(match[2])
        wanted = [s for s in skus().values() if s.chip.key == key and s.chip.kind == "gpu"]
        exact = [s for s in wanted if s.chips == int(match[1] or 1)]
        if exact:
            return exact[0]
        if wanted:
            raise _unknown(text, wanted)
    if match := re.fullmatch(r"([a-z0-9]+)-(\d+(?:x\d+)*)", lowered):
        key = chip_key(match[1])
        family = [s for s in skus().values() if s.chip.key == key]
        if family and "x" in match[2]:
            return _by_topology(text, key, match[2], family)
        for item in family:
            if item.name.rpartition("-")[2] == match[2]:
                return item
        if family:
            raise _unknown(text, _nearest(family, _chips_in(family[0].chip, int(match[2]))))
    close = difflib.get_close_matches(lowered, [n.lower() for n in skus()], n=4, cutoff=0.4)
    raise _unknown(text, [s for s in skus().values() if s.name.lower() in close])


def chip_key(text: str) -> str:
    """The key of a chip in `chips()`, for its key or one of its other names; else the text."""
    for key, chip in chips().items():
        if text == key or text in chip.aliases:
            return key
    return text


def _chips_in(chip: Chip, suffix: int) -> int:
    return suffix // chip.cores_per_chip if chip.suffix_counts == "cores" else suffix


def _nearest(family: list[Sku], count: int) -> list[Sku]:
    closest = sorted(family, key=lambda s: abs(math.log(max(s.chips, 1) / max(count, 1))))[:3]
    return sorted(closest, key=lambda s: s.chips)


def _by_topology(text: str, key: str, topology: str, family: list[Sku]) -> Sku:
    rank = family[0].topology.count("x") + 1
    dims = [int(d) for d in topology.split("x")]
    # `v5p-4x2` is how people write a flat slice of a three-dimensional torus: 4x2x1.
    padded = dims + [1] * (rank - len(dims))
    for item in family:
        if sorted(padded) == sorted(int(d) for d in item.topology.split("x")):
            return item
    if rank == 3 and len(padded) == 3 and all(d and d % 4 == 0 for d in padded):
        # Google: above one cube (4x4x4), any AxBxC of multiples of four is a slice.
        count = math.prod(padded)
        if count <= max(s.chips for s in family):
            shape = "x".join(str(d) for d in sorted(padded))
            suffix = count * family[0].chip.cores_per_chip
            return _slice(key, f"{key}-{suffix}", shape, count // 4, 4, family[-1].gce_machine_type)
    raise _unknown(text, _nearest(family, math.prod(padded)))


def _unknown(text: str, near: list[Sku]) -> ConfigError:
    if not near:
        near = [skus()[n] for n in ("v6e-1", "v6e-8", "v5p-8", "1xH100", "8xH100")]
    return ConfigError(
        f"instance type {text!r} is not known", "nearest: " + ", ".join(describe(s) for s in near)
    )


def describe(item: Sku) -> str:
    """One phrase for people: `v5p-16 (2x2x2, 8 chips, $33.60/h)`."""
    price = item.price_per_hour()
    parts = [item.topology] if item.topology else []
    parts.append(f"{item.chips} chip{'s' if item.chips > 1 else ''}")
    if price is not None:
        parts.append(f"${price:.2f}/h")
    return f"{item.name} ({', '.join(parts)})"

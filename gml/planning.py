"""From a wish to a plan: which provider, which places in which order, and the exact requests."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from gaia import hardware
from gml.durations import parse_duration
from gml.errors import GmlError, StockOut, UsageError
from gml.fleet import Fleet
from gml.model import CreateSpec, Host, Offer, check_id, new_id
from gml.ssh import public_key

# The watchdog counts from its first tick, long before anybody can have logged in.
MIN_IDLE_S = 300
# Google's strategies that may wait for capacity.
QUEUES = ("queued", "flex")


@dataclass(frozen=True)
class Wish:
    """What the user asked for; `gml node create` and `gml run` fill it from their options."""

    instance_type: str
    timeout_s: int
    provider: str = ""
    name: str = ""
    zone: str = ""
    spot: bool = False
    strategy: str = "auto"
    max_price: float | None = None
    retry_until_up: bool = False
    retry_pause_s: float = 30.0
    reservation: str = ""
    idle: str = ""
    disk_gb: int = 100
    limit_s: int = 0
    wait_s: int = 3600
    unsafe: bool = False
    self_terminate: bool = False
    hosts: tuple[Host, ...] = ()
    wait_ssh: bool = True


def spec_for(spec: CreateSpec, offer: Offer, waited_s: int = 0) -> CreateSpec:
    """The spec as one place gets it, after `waited_s` seconds of trying others.

    Time in a queue is not the machine's: it gets its own deadline once it is up.
    """
    queue = spec.wait_s if offer.strategy in QUEUES else 0
    created, deadline = spec.created + waited_s, spec.deadline + waited_s + queue
    return dataclasses.replace(spec, created=created, deadline=deadline)


def parse_sku(text: str, provider: str) -> hardware.Sku | None:
    """The instance type; None for local machines. Raises UsageError with the nearest names."""
    if provider == "local":
        return None
    try:
        return hardware.sku(text)
    except hardware.ConfigError as error:
        raise UsageError(error.problem, error.remedy) from None


def _checked(wish: Wish, provider: str, idle: str) -> int:
    """The idle limit in seconds; raises UsageError for options that don't go together."""
    only = {"local": ("--host", wish.hosts), "lambda": ("--self-terminate", wish.self_terminate),
            "google": ("--reservation", wish.reservation)}  # fmt: skip
    for owner, (option, given) in only.items():
        if given and provider != owner:
            raise UsageError(f"{option} is for --provider {owner}, not {provider}", "leave it out")
    if wish.spot and provider == "lambda":
        raise UsageError("Lambda has no --spot machines", "leave it out, or use --provider google")
    if wish.spot and wish.reservation:
        raise UsageError("--spot and --reservation exclude each other", "leave one out")
    if wish.reservation and not re.fullmatch(
        r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", wish.reservation
    ):
        raise UsageError(f"--reservation {wish.reservation[:60]!r} is not a name", "give its name")
    if wish.max_price is not None and not wish.max_price > 0:
        raise UsageError(f"--max-price {wish.max_price:g} is not a price", "say --max-price 30")
    text = wish.idle or idle
    seconds = 0 if text == "none" else parse_duration(text, "--idle")
    if seconds and seconds < MIN_IDLE_S:
        remedy = "take at least 5m (setting up takes minutes too), or none"
        raise UsageError(f"--idle {text} is too short", remedy)
    return seconds


class Planner(Fleet):
    """Turns wishes into specs, offers and requests; changes nothing."""

    def spec(self, wish: Wish) -> CreateSpec:
        """The wish with an id and absolute times; raises UsageError."""
        name = wish.provider or self._provider_for(wish)
        provider = self.provider(name)
        idle_s = _checked(wish, name, self.config.idle)
        sku = parse_sku(wish.instance_type, name)
        created = round(self.now())
        return CreateSpec(
            id=check_id(wish.name) if wish.name else new_id(sku.name if sku else "local"),
            owner=self.config.owner,
            sku=sku,
            sku_name=sku.name if sku else "local",
            created=created,
            deadline=created + wish.timeout_s,
            spot=wish.spot,
            public_key="" if name == "local" else public_key(self.config),
            user=provider.ssh_user or "gml",
            idle_s=idle_s,
            disk_gb=wish.disk_gb,
            reservation=wish.reservation,
            wait_s=wish.wait_s,
            strategy=wish.strategy,
            hosts=wish.hosts,
            run_s=wish.timeout_s,
            limit_s=wish.limit_s,
        )

    def _provider_for(self, wish: Wish) -> str:
        if wish.hosts or wish.instance_type == "local":
            return "local"
        sku = parse_sku(wish.instance_type, "")
        sold = (
            [
                p
                for p, there in (("google", sku.gce_machine_type), ("lambda", sku.lambda_type))
                if there
            ]
            if sku
            else []
        )
        ready = [p.name for p in self.configured()]
        for name in sold:
            if name in ready:
                return name
        raise UsageError(
            f"no configured provider sells {wish.instance_type}",
            f"run `gml init {sold[0]}`" if sold else "say --provider",
        )

    def offers(self, spec: CreateSpec, wish: Wish) -> list[Offer]:
        """Places to try, cheapest first; raises UsageError or StockOut when there is none."""
        provider = self.provider(wish.provider or self._provider_for(wish))
        if provider.name == "local":
            if spec.hosts:
                return [Offer("local", "local", "", False, 0.0, "yours", "ssh", "", "--host")]
            found = provider.offers(spec.sku, spot=False, zone=wish.zone)  # type: ignore[arg-type]
        else:
            assert spec.sku is not None
            found = provider.offers(
                spec.sku,
                spot=spec.spot,
                zone=wish.zone,
                live=provider.name == "lambda",
                strategy=wish.strategy,
            )
        if wish.max_price is not None:
            dear = [o for o in found if o.price is None or o.price > wish.max_price]
            found = [o for o in found if o not in dear]
            if dear and not found:
                prices = sorted({o.price for o in dear if o.price is not None})
                lowest = f"the cheapest is ${prices[0]:.2f}/h" if prices else "no price is known"
                raise UsageError(
                    f"nothing costs at most --max-price {wish.max_price:g} $/h", lowest
                )
        if found and all(o.capacity == "none" for o in found):
            raise StockOut(
                f"{found[0].provider} has no {spec.sku_name} anywhere now", "try --retry-until-up"
            )
        if not found:
            raise self._nowhere(spec, wish, provider.name)
        return found

    def _nowhere(self, spec: CreateSpec, wish: Wish, provider: str) -> GmlError:
        """Why there is no place at all: not sold by this provider, or not in this zone."""
        if spec.sku is None:
            known = ", ".join(self.config.local_hosts) or "none"
            what = f"--zone {wish.zone!r} is not in [local.hosts]" if wish.zone else "no local host"
            return UsageError(what, f"known: {known}; or say --host user@address:port")
        sold = {"google": spec.sku.gce_machine_type or spec.sku.tpu_type,
                "lambda": spec.sku.lambda_type}  # fmt: skip
        if not sold.get(provider):
            others = ", ".join(name for name, there in sold.items() if there)
            return UsageError(f"{provider} does not sell {spec.sku_name}", f"sold by: {others}")
        where = f" in {wish.zone}" if wish.zone else ""
        zones = f"it is in {', '.join(spec.sku.zones)}" if provider == "google" else ""
        remedy = zones or f"see `gml offers {spec.sku_name}`"
        return StockOut(f"{spec.sku_name} is offered nowhere{where}", remedy)

    def plan(self, wish: Wish) -> tuple[CreateSpec, Offer, list[dict]]:
        """What `--dry-run` prints: the first offer and its exact requests."""
        spec = self.spec(wish)
        offer = self.offers(spec, wish)[0]
        spec = spec_for(spec, offer)
        provider = self.provider(offer.provider)
        requests = provider.create_requests(spec, offer)
        return spec, offer, [r.describe(provider.base_url(r.service)) for r in requests]

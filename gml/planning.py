"""From a wish to a plan: which provider, which places in which order, and the exact requests."""

from __future__ import annotations

from dataclasses import dataclass

from gaia import hardware
from gml.durations import parse_duration
from gml.errors import StockOut, UsageError
from gml.fleet import Fleet
from gml.model import CreateSpec, Host, Offer, check_id, new_id
from gml.ssh import public_key


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


def parse_sku(text: str, provider: str) -> hardware.Sku | None:
    """The instance type; None for local machines. Raises UsageError with the nearest names."""
    if provider == "local":
        return None
    try:
        return hardware.sku(text)
    except hardware.ConfigError as error:
        raise UsageError(error.problem, error.remedy) from None


class Planner(Fleet):
    """Turns wishes into specs, offers and requests; changes nothing."""

    def spec(self, wish: Wish) -> CreateSpec:
        """The wish with an id and absolute times; raises UsageError."""
        name = wish.provider or self._provider_for(wish)
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
            user=self.provider(name).ssh_user or "gml",
            idle_s=0
            if wish.idle == "none"
            else parse_duration(wish.idle or self.config.idle, "--idle"),
            disk_gb=wish.disk_gb,
            reservation=wish.reservation,
            wait_s=wish.wait_s,
            strategy=wish.strategy,
            hosts=wish.hosts,
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

    def list_price(self, wish: Wish) -> float | None:
        """US dollars per hour from the dated table, for the progress line; None where unknown."""
        sku = parse_sku(wish.instance_type, wish.provider)
        return sku.price_per_hour(spot=wish.spot) if sku else None

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
            raise StockOut(
                f"{spec.sku_name} is offered nowhere{f' in {wish.zone}' if wish.zone else ''}",
                f"see `gml offers {spec.sku_name}`",
            )
        return found

    def plan(self, wish: Wish) -> tuple[CreateSpec, Offer, list[dict]]:
        """What `--dry-run` prints: the first offer and its exact requests."""
        spec = self.spec(wish)
        offer = self.offers(spec, wish)[0]
        provider = self.provider(offer.provider)
        requests = provider.create_requests(spec, offer)
        return spec, offer, [r.describe(provider.base_url(r.service)) for r in requests]

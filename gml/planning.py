"""From a request to a plan: which provider, which places in which order, and the exact requests."""

from __future__ import annotations

import dataclasses
import re

from gml.durations import format_duration, parse_duration
from gml.errors import GmlError, StockOut, UsageError
from gml.fleet import Fleet
from gml.model import CreateSpec, Offer, check_id, new_id, parse_sku
from gml.remote.keys import public_key
from gml.request import NodeRequest

# The watchdog counts from its first tick, long before anybody can have logged in.
MIN_IDLE_S = 300
# Google's strategies that may wait for capacity.
QUEUES = ("queued", "flex")


def spec_for(spec: CreateSpec, offer: Offer, waited_s: int = 0) -> CreateSpec:
    """The spec as one place gets it, after `waited_s` seconds of trying others.

    Time in a queue is not the machine's: it gets its own deadline once it is up.
    """
    queue = spec.wait_s if offer.strategy in QUEUES else 0
    created, deadline = spec.created + waited_s, spec.deadline + waited_s + queue
    return dataclasses.replace(spec, created=created, deadline=deadline)


def _checked(request: NodeRequest, provider: str, idle: str) -> int:
    """The idle limit in seconds; raises UsageError for options that don't go together."""
    only = {
        "local": ("--host", request.hosts),
        "lambda": ("--self-terminate", request.self_terminate),
        "google": ("--reservation", request.reservation),
    }
    for owner, (option, given) in only.items():
        if given and provider != owner:
            raise UsageError(f"{option} is for --provider {owner}, not {provider}", "leave it out")
    if request.self_terminate and not request.wait_ssh:
        # Its key goes over ssh: without a login nothing would end the machine.
        raise UsageError("--self-terminate needs a login, and --no-ssh skips it", "leave one out")
    if request.internal_ip and provider != "google":
        raise UsageError(f"--internal-ip is for --provider google, not {provider}", "leave it out")
    if request.runtime:
        _check_runtime(request, provider)
    if request.limit_s and (provider != "google" or request.strategy in ("node", "queued")):
        where = f"--strategy {request.strategy}" if provider == "google" else provider
        raise UsageError(
            f"--limit {format_duration(request.limit_s)} is kept by --strategy gce and flex only, "
            f"not by {where}",
            "leave it out, or take one of these",
        )
    if request.strategy == "flex" and (request.spot or request.reservation):
        option = "--spot" if request.spot else "--reservation"
        raise UsageError(
            f"--strategy flex and {option} exclude each other: flex-start is a way of its own",
            f"leave {option} out, or take --strategy queued",
        )
    if request.spot and provider == "lambda":
        raise UsageError("Lambda has no --spot machines", "leave it out, or use --provider google")
    if request.spot and request.reservation:
        raise UsageError("--spot and --reservation exclude each other", "leave one out")
    if request.reservation and not re.fullmatch(
        r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", request.reservation
    ):
        shown = request.reservation[:60]
        raise UsageError(f"--reservation {shown!r} is not a name", "give its name")
    if request.max_price is not None and not request.max_price > 0:
        raise UsageError(f"--max-price {request.max_price:g} is not a price", "say --max-price 30")
    text = request.idle or idle
    seconds = 0 if text == "none" else parse_duration(text, "--idle")
    if seconds and seconds < MIN_IDLE_S:
        remedy = "take at least 5m (setting up takes minutes too), or none"
        raise UsageError(f"--idle {text} is too short", remedy)
    return seconds


def _check_runtime(request: NodeRequest, provider: str) -> None:
    if provider != "google":
        raise UsageError(
            f"--runtime-version is for --provider google, not {provider}", "leave it out"
        )
    if request.strategy == "gce":
        raise UsageError(
            "--runtime-version is the TPU API's, and --strategy gce takes an image",
            "set google.image_family in config.toml, or take --strategy node",
        )
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?", request.runtime):
        raise UsageError(
            f"--runtime-version {request.runtime[:60]!r} is not a version",
            "for example v2-alpha-tpuv6e",
        )


def make_spec(fleet: Fleet, request: NodeRequest) -> CreateSpec:
    """The request with an id and absolute times; raises UsageError."""
    name = provider_for(fleet, request)
    provider = fleet.provider(name)
    idle_s = _checked(request, name, fleet.config.idle)
    _check_iap(request, fleet.config.google.tunnel)
    sku = None if name == "local" else parse_sku(request.instance_type)
    if sku is not None and sku.hosts > 1:
        # Each host sees only itself, and would delete the slice while somebody works on another.
        if idle_s and request.idle:
            raise UsageError(
                f"--idle {request.idle} is for a single host, and {sku.name} has {sku.hosts}",
                "leave it out: a slice ends at its deadline, not when idle",
            )
        idle_s = 0
    created = round(fleet.now())
    return CreateSpec(
        id=check_id(request.name) if request.name else new_id(sku.name if sku else "local"),
        owner=fleet.config.owner,
        sku=sku,
        sku_name=sku.name if sku else "local",
        created=created,
        deadline=created + request.timeout_s,
        spot=request.spot,
        public_key="" if name == "local" else public_key(fleet.config),
        user=provider.ssh_user or "gml",
        idle_s=idle_s,
        disk_gb=request.disk_gb,
        reservation=request.reservation,
        wait_s=request.wait_s,
        strategy=request.strategy,
        hosts=request.hosts,
        run_s=request.timeout_s,
        limit_s=request.limit_s,
        internal_ip=request.internal_ip,
        runtime=request.runtime,
        queue=request.queue,
    )


def provider_for(fleet: Fleet, request: NodeRequest) -> str:
    """The provider that was asked for, or the first configured one that sells the type."""
    if request.provider:
        return request.provider
    if request.hosts or request.instance_type == "local":
        return "local"
    sku = parse_sku(request.instance_type)
    sold = list(sku.sellers)
    ready = [p.name for p in fleet.configured()]
    for name in sold:
        if name in ready:
            return name
    raise UsageError(
        f"no configured provider sells {request.instance_type}",
        f"run `gml init {sold[0]}`" if sold else "say --provider",
    )


def find_offers(fleet: Fleet, spec: CreateSpec, request: NodeRequest) -> list[Offer]:
    """Places to try, cheapest first; raises UsageError or StockOut when there is none."""
    provider = fleet.provider(provider_for(fleet, request))
    if provider.name == "local":
        if spec.hosts:
            return [Offer("local", "local", "", False, 0.0, "yours", "ssh", "", "--host")]
        offers = provider.offers(spec.sku, spot=False, zone=request.zone)  # type: ignore[arg-type]
    else:
        assert spec.sku is not None
        offers = provider.offers(
            spec.sku,
            spot=spec.spot,
            zone=request.zone,
            live=provider.name in ("lambda", "aws"),
            strategy=request.strategy,
        )
        if request.runtime:
            offers = [o for o in offers if o.strategy != "gce"]
        if offers and request.limit_s:
            offers = [o for o in offers if o.strategy in ("gce", "flex")]
            if not offers:
                raise UsageError(
                    f"--limit {format_duration(request.limit_s)} is kept by --strategy gce and "
                    f"flex only, and auto takes another for {spec.sku_name}",
                    "take one of these, or run `gml doctor -t TYPE` first, for gce",
                )
        if offers and request.internal_ip and fleet.config.google.tunnel == "iap":
            offers = [o for o in offers if o.strategy == "gce"] or offers
            _check_iap(dataclasses.replace(request, strategy=offers[0].strategy), "iap")
    if request.max_price is not None:
        dear = [o for o in offers if o.price is None or o.price > request.max_price]
        offers = [o for o in offers if o not in dear]
        if dear and not offers:
            prices = sorted({o.price for o in dear if o.price is not None})
            if not prices:
                places = ", ".join(o.zone for o in dear)
                raise UsageError(
                    f"the price of {spec.sku_name} in {places} is unknown",
                    "leave --max-price out, or take another zone",
                )
            lowest = f"the cheapest is ${prices[0]:.2f}/h"
            unknown = ", ".join(o.zone for o in dear if o.price is None)
            lowest += f"; unknown in {unknown}, which --max-price leaves out" * bool(unknown)
            raise UsageError(f"nothing costs at most --max-price {request.max_price:g} $/h", lowest)
    if offers and all(o.capacity == "none" for o in offers):
        raise StockOut(
            f"{offers[0].provider} has no {spec.sku_name} anywhere now", "try --retry-until-up"
        )
    if not offers:
        raise _nowhere(fleet, spec, request, provider.name)
    return offers


def _check_iap(request: NodeRequest, tunnel: str) -> None:
    """Raises UsageError for machines that IAP can't reach: it finds those of Compute Engine."""
    if request.internal_ip and tunnel == "iap" and request.strategy in ("node", "queued", "flex"):
        raise UsageError(
            "IAP reaches Compute Engine's machines only, and this one is the TPU API's",
            "take --strategy gce, or set google.tunnel to a bastion (user@host)",
        )


def _nowhere(fleet: Fleet, spec: CreateSpec, request: NodeRequest, provider: str) -> GmlError:
    """Reason why there is no place: not sold by this provider, or not in this zone."""
    if spec.sku is None:
        known = ", ".join(fleet.config.local_hosts) or "none"
        problem = "no local host"
        if request.zone:
            problem = f"--zone {request.zone!r} is not in [local.hosts]"
        return UsageError(problem, f"known: {known}; or say --host user@address:port")
    if provider not in spec.sku.sellers:
        others = ", ".join(spec.sku.sellers)
        return UsageError(f"{provider} does not sell {spec.sku_name}", f"sold by: {others}")
    where = f" in {request.zone}" if request.zone else ""
    zones = f"it is in {', '.join(spec.sku.zones)}" if provider == "google" else ""
    remedy = zones or f"see `gml offers {spec.sku_name}`"
    return StockOut(f"{spec.sku_name} is offered nowhere{where}", remedy)


def plan(fleet: Fleet, request: NodeRequest) -> tuple[CreateSpec, Offer, list[dict]]:
    """The spec, the first offer and its exact requests, for `--dry-run`."""
    spec = make_spec(fleet, request)
    offer = find_offers(fleet, spec, request)[0]
    spec = spec_for(spec, offer)
    provider = fleet.provider(offer.provider)
    requests = provider.create_requests(spec, offer)
    return spec, offer, [r.describe(provider.base_url(r.service)) for r in requests]

"""Places at Google where a type can be had, and the strategy by which it is made there."""

from __future__ import annotations

from gaia.hardware import Sku
from gml.errors import Denied, Elsewhere, StockOut, UsageError
from gml.model import Offer
from gml.places import region_of
from gml.providers.google.session import Session

# In the store: types and zones for which `gml doctor -t TYPE` has seen machine type and image.
VERIFIED = "verified.json"
_LIMITS = {
    "gce": "google",
    "flex": "google",
    "queued": "watchdog + reap",
    "node": "watchdog + reap",
}
STRATEGIES = tuple(_LIMITS)


def offers(
    session: Session,
    sku: Sku,
    *,
    spot: bool,
    zone: str = "",
    live: bool = False,
    strategy: str = "",
) -> list[Offer]:
    """Zones of the dated table (or, with `live`, those that answer for the type)."""
    if not (sku.gce_machine_type or sku.tpu_type):
        return []
    zones = [z for z in sku.zones if zone in ("", z, region_of(z))]
    if zone.count("-") == 2 and not zones:
        zones = [zone]  # a zone that our table does not know is the user's better knowledge
    offers_made = []
    for place in zones:
        chosen = _strategy(session, sku, place, strategy or session.config.google.strategy)
        price = sku.chip.price(spot=spot, region=region_of(place), provider="google")
        usd = sku.price_per_hour(spot=spot, region=region_of(place), provider="google")
        capacity = _offered(session, sku, place, chosen) if live else "unknown"
        if capacity == "not offered":
            continue
        offers_made.append(
            Offer(
                "google", sku.name, place, spot, usd, capacity, chosen, _LIMITS[chosen],
                f"list price {price.date}" if price else "no list price known",
            )
        )  # fmt: skip
    return sorted(offers_made, key=lambda o: (o.price is None, o.price or 0.0))


def _strategy(session: Session, sku: Sku, zone: str, wanted: str) -> str:
    if wanted not in (*STRATEGIES, "auto", ""):
        raise UsageError(f"--strategy {wanted!r} is not known", "auto, gce, flex, queued, node")
    if wanted not in ("auto", ""):
        if wanted != "gce" and not sku.tpu_type:
            raise UsageError(f"{sku.name} is not served by the TPU API", "use --strategy gce")
        if wanted == "node" and sku.hosts > 1:
            raise UsageError(f"{sku.name} has {sku.hosts} hosts", "use --strategy queued")
        return wanted
    verified = session.store.read_json(VERIFIED).get(f"{sku.name}@{zone}")
    if not sku.tpu_type or verified:
        return "gce"
    return "queued" if sku.hosts > 1 else "node"


def _offered(session: Session, sku: Sku, zone: str, strategy: str) -> str:
    if strategy == "gce":
        path = f"compute/v1/projects/{session.config.project}/zones/{zone}/machineTypes"
        try:
            machine_type = session.api.get("compute", f"{path}/{sku.gce_machine_type}")
        except (Denied, Elsewhere, UsageError):
            machine_type = None
        return "offered" if machine_type else "not offered"
    path = f"v2/projects/{session.config.project}/locations/{zone}/acceleratorTypes"
    try:
        pages = session.api.pages("tpu", path)
    except (Elsewhere, StockOut, Denied):
        return "not offered"
    types = {t.get("type") for page in pages for t in page.get("acceleratorTypes", [])}
    return "offered" if sku.tpu_type in types else "not offered"

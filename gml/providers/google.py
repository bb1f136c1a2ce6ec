"""Google Cloud: four ways to a machine behind one provider.

- `gce`: Compute Engine instance (or managed group for several hosts) with `maxRunDuration` and
  `DELETE`: Google itself ends it. The future-proof way; needs Compute quota (not the TPU API's).
- `flex`: queued resource with flex-start and `maxRunDuration` (v2alpha1): Google ends it, <= 7 d.
- `queued`: queued resource (spot, on demand, reservation): several hosts; no limit of Google's.
- `node`: a plain v2 node: one host; no limit of Google's, the watchdog and the reaper end it.

`auto` takes `gce` where `gml doctor` has verified type and image, else `queued` for several hosts,
else `node`; what Google does not end itself is said so by `gml offers` and `gml node create`.
"""

from __future__ import annotations

import time
from typing import Any

from gaia.hardware import Sku
from gml.durations import format_duration
from gml.errors import Denied, GmlError, StockOut, Unavailable, Unsafe, UsageError
from gml.http import ApiError
from gml.model import ApiRequest, CreateSpec, Node, Offer
from gml.providers import google_bodies as bodies
from gml.providers import google_seen as seen
from gml.providers.base import Tick, silent
from gml.providers.google_api import (
    quota_error,
    translate,
    wait_pauses,
)
from gml.providers.google_bodies import cloud_name, region
from gml.providers.google_look import GoogleLook, part_of

VERIFIED = "verified.json"
_KINDS = {
    "nodes": "TPU node",
    "queuedResources": "queued resource",
    "instances": "instance",
    "resourcePolicies": "workload policy",
    "instanceTemplates": "instance template",
    "instanceGroupManagers": "instance group",
}
_LIMITS = {
    "gce": "google",
    "flex": "google",
    "queued": "watchdog + reap",
    "node": "watchdog + reap",
}
STRATEGIES = tuple(_LIMITS)


class GoogleProvider(GoogleLook):
    """The Cloud TPU API and Compute Engine behind gml's protocol."""

    name = "google"

    # ---- offers

    def offers(
        self, sku: Sku, *, spot: bool, zone: str = "", live: bool = False, strategy: str = ""
    ) -> list[Offer]:
        """Zones of the dated table (or, with `live`, those that answer for the type)."""
        if not (sku.gce_machine_type or sku.tpu_type):
            return []
        zones = [z for z in sku.zones if zone in ("", z, region(z))]
        if zone.count("-") == 2 and not zones:
            zones = [zone]  # a zone that our table does not know is the user's better knowledge
        found = []
        for place in zones:
            chosen = self._strategy(sku, place, strategy or self.config.google.strategy)
            price = sku.chip.price(spot=spot, region=region(place), provider="google")
            usd = sku.price_per_hour(spot=spot, region=region(place), provider="google")
            capacity = self._offered(sku, place, chosen) if live else "unknown"
            if capacity == "not offered":
                continue
            found.append(
                Offer(
                    self.name, sku.name, place, spot, usd, capacity, chosen, _LIMITS[chosen],
                    f"list price {price.date}" if price else "no list price known",
                )
            )  # fmt: skip
        return sorted(found, key=lambda o: (o.price is None, o.price or 0.0))

    def _strategy(self, sku: Sku, zone: str, wanted: str) -> str:
        if wanted not in (*STRATEGIES, "auto", ""):
            raise UsageError(f"--strategy {wanted!r} is not known", "auto, gce, flex, queued, node")
        if wanted not in ("auto", ""):
            if wanted != "gce" and not sku.tpu_type:
                raise UsageError(f"{sku.name} is not served by the TPU API", "use --strategy gce")
            if wanted == "node" and sku.hosts > 1:
                raise UsageError(f"{sku.name} has {sku.hosts} hosts", "use --strategy queued")
            return wanted
        verified = self.store.read_json(VERIFIED).get(f"{sku.name}@{zone}")
        if not sku.tpu_type or verified:
            return "gce"
        return "queued" if sku.hosts > 1 else "node"

    def _offered(self, sku: Sku, zone: str, strategy: str) -> str:
        if strategy == "gce":
            path = f"compute/v1/projects/{self.config.project}/zones/{zone}/machineTypes"
            try:
                found = self.api.get("compute", f"{path}/{sku.gce_machine_type}")
            except (Denied, UsageError):
                found = None
            return "offered" if found else "not offered"
        path = f"v2/projects/{self.config.project}/locations/{zone}/acceleratorTypes"
        try:
            pages = self.api.pages("tpu", path)
        except (StockOut, Denied):
            return "not offered"
        types = {t.get("type") for page in pages for t in page.get("acceleratorTypes", [])}
        return "offered" if sku.tpu_type in types else "not offered"

    # ---- create

    def create_requests(self, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
        """The exact mutating calls of `create`."""
        return bodies.create_requests(self.config, spec, offer)

    def create(self, spec: CreateSpec, offer: Offer, tick: Tick = silent) -> Node:
        """Sends the requests, waits for the operation, and reads back what came of it."""
        try:
            requests = self.create_requests(spec, offer)
        except GmlError as error:
            error.nothing_made = True
            raise
        for number, request in enumerate(requests):
            try:
                operation = self._post(request, spec)
            except GmlError as error:
                error.nothing_made = number == 0 and error.refused
                raise
            if operation is not None:
                kind = _KINDS[request.path.rsplit("/", 1)[-1]]
                tick(f"waiting for Google to make the {kind}")
                self._wait_operation(request, operation)
        if offer.strategy in ("queued", "flex"):
            self._wait_queued(spec, offer, tick)
        node = self._wait_ready(spec, offer, tick)
        if offer.strategy in ("gce", "flex"):
            node = self._verify_limit(node, spec, offer)
        self._pin_host_keys(node, offer)
        return node

    def _post(self, request: ApiRequest, spec: CreateSpec) -> dict[str, Any] | None:
        """One create call: its operation, or None where it exists already and is ours."""
        try:
            return self.api.send(request)
        except ApiError as error:
            if error.status != 409:
                raise translate(error, self.config) from None
            name = cloud_name(spec.id)
            found = self.api.get(request.service, f"{request.path}/{name}")
            part = part_of(found, f"{request.path}/{name}") if found is not None else None
            ours = part is not None and (part.id, part.owner) == (spec.id, spec.owner)
            if found is not None and not ours:
                raise UsageError(
                    f"{name} exists in {request.path} and is not ours", "take another --name"
                ) from None
            return None  # an answer got lost, or an earlier create was killed

    def _wait_queued(self, spec: CreateSpec, offer: Offer, tick: Tick) -> None:
        version = "v2alpha1" if offer.strategy == "flex" else "v2"
        path = f"{version}/{self._location(offer.zone)}/queuedResources/{cloud_name(spec.id)}"
        waited = 0.0
        for pause in wait_pauses(min(1.0, self.config.backoff_s), 15.0):
            raw = self.api.get("tpu", path)
            if raw is None:
                raise StockOut(f"the queued resource in {offer.zone} is gone", "try again")
            state = raw.get("state") or {}
            name = state.get("state", "")
            tick(f"waiting in the queue of {offer.zone} ({name.lower()})")
            if name == "ACTIVE":
                return
            if name in ("FAILED", "SUSPENDED", "SUSPENDING"):
                error = (state.get("failedData") or {}).get("error") or {}
                text = error.get("message", f"it is {name.lower()}")
                if "uota" in text:
                    raise quota_error(text, self.config)
                raise StockOut(f"queue in {offer.zone}: {text[:250]}", "try another zone")
            waited += pause
            if waited > spec.wait_s:
                raise StockOut(
                    f"no capacity in {offer.zone} within {format_duration(spec.wait_s)}",
                    "wait longer with --wait, or try another zone",
                )

    def _wait_ready(self, spec: CreateSpec, offer: Offer, tick: Tick) -> Node:
        assert spec.sku is not None
        waited = 0.0
        for pause in wait_pauses(min(1.0, self.config.backoff_s)):
            node = self._look(spec.id, f"{offer.strategy}:{offer.zone}")
            if node is None:
                raise StockOut(f"{spec.id} did not come up in {offer.zone}", "try another zone")
            if node.dead():
                raise StockOut(f"{spec.id} is {node.state} in {offer.zone}", "try another zone")
            if node.state == "ready" and len(node.hosts) >= spec.sku.hosts:
                return node
            waited += pause
            tick(f"waiting for {spec.id} in {offer.zone} ({node.state})")
            if waited > self.patience_s:
                raise Unavailable(f"{spec.id} was not ready after {format_duration(waited)}")
        raise AssertionError("unreachable")

    def _verify_limit(self, node: Node, spec: CreateSpec, offer: Offer) -> Node:
        """The provider's own end must stand in its answer, or the create has failed."""
        if offer.strategy == "flex":
            path = f"v2alpha1/{self._location(offer.zone)}/queuedResources/{cloud_name(spec.id)}"
            raw = self.api.get("tpu", path) or {}
            length = seen.duration((raw.get("runDuration") or {}).get("maxRunDuration"))
            ends = seen.timestamp((raw.get("runDuration") or {}).get("terminationTime"))
            # The clock of a flex-start run begins when it starts, which was not after now.
            limit = node.limit or ends or (round(time.time()) + length if length else None)
        else:
            limit = node.limit
        if limit is None:
            raise Unsafe(
                f"Google's answer for {spec.id} has no time limit",
                "use another --strategy; the half-made machine is being removed",
            )
        return node.replace(limit=limit)

    def _pin_host_keys(self, node: Node, offer: Offer) -> None:
        """Host keys from guest attributes where the agent has published them; else first use."""
        if offer.strategy != "gce" or not node.hosts:
            return
        from gml.ssh import Ssh

        ssh = Ssh(self.config, self.store)
        machines = [r for r in node.resources if "/instances/" in r]
        for index, resource in enumerate(machines):
            path = resource.split(":", 1)[1]
            try:
                raw = self.api.get(
                    "compute", f"{path}/getGuestAttributes", {"queryPath": "hostkeys/"}
                )
            except GmlError:
                return
            items = ((raw or {}).get("queryValue") or {}).get("items") or []
            keys = [f"{i['key']} {i['value']}" for i in items if i.get("key") and i.get("value")]
            if keys:
                ssh.pin(node, index, keys)

    def doctor(self) -> list[dict[str, Any]]:
        """Credentials, project, APIs, network."""
        from gml.doctor import google_checks

        return google_checks(self)

"""Google Cloud: four ways to a machine behind one provider.

- `gce`: Compute Engine instance (or managed group for several hosts) with `maxRunDuration` and
  `DELETE`: Google itself ends it. The future-proof way; needs Compute quota (not the TPU API's).
- `flex`: queued resource with flex-start and `maxRunDuration` (v2alpha1): Google ends it, <= 7 d.
- `queued`: queued resource (spot, on demand, reservation): several hosts; no limit of Google's.
- `node`: a plain v2 node: one host; no limit of Google's, the watchdog and the reaper end it.

`auto` takes `gce` where `gml doctor` has verified type and image, else `queued` for several hosts,
else `node`; `gml offers` and `gml node create` name what Google does not end itself.
"""

from __future__ import annotations

import os

from gaia.hardware import Sku
from gml.config import Config
from gml.model import ApiRequest, CreateSpec, Node, Offer
from gml.progress import Progress, silent
from gml.providers.base import Check
from gml.providers.google import changes, checks, creation, offers, requests, resources
from gml.providers.google.api import GoogleApi
from gml.providers.google.session import Session
from gml.store import Store


class GoogleProvider:
    """The Cloud TPU API and Compute Engine behind gml's protocol; each method is one module's."""

    name = "google"

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.api = GoogleApi(config)
        self.session = Session(config, store, self.api)
        self.ssh_user = config.google.ssh_user

    def ready(self) -> bool:
        """Tells whether a project is set."""
        return bool(self.config.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT"))

    def sign_in(self) -> None:
        """Checks project and token, refreshing it where it has expired; UsageError, AuthError."""
        _ = self.config.project
        self.api.sign_in.token()

    def ask_time(self) -> None:
        """Google's time, from an answer without credentials."""
        self.api.http("tpu").ask_time()

    def base_url(self, service: str) -> str:
        """Base address of a service."""
        return self.config.endpoint(service)

    def offers(
        self, sku: Sku, *, spot: bool, zone: str = "", live: bool = False, strategy: str = ""
    ) -> list[Offer]:
        """Zones of the dated table (or, with `live`, those that answer for the type)."""
        return offers.offers(self.session, sku, spot=spot, zone=zone, live=live, strategy=strategy)

    def create_requests(self, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
        """The exact mutating calls of `create`."""
        return requests.create_requests(self.config, spec, offer)

    def create(self, spec: CreateSpec, offer: Offer, progress: Progress = silent) -> Node:
        """Makes the node; it has addresses, and a time limit where the strategy promises one."""
        return creation.create(self.session, spec, offer, progress)

    def list_nodes(self) -> list[Node]:
        """Nodes, queued resources, instances, groups, loose disks: all zones, by label."""
        return resources.list_nodes(self.session)

    def find(self, node: Node) -> Node | None:
        """Everything of the node, by name in the places that were tried, else by label."""
        return resources.find(self.session, node)

    def ended_at(self, node: Node) -> int | None:
        """Time of the operation that deleted it; Google keeps these for some days."""
        return resources.ended_at(self.session, node)

    def delete_requests(self, node: Node) -> list[ApiRequest]:
        """DELETEs of the known resources; groups and queued resources take their machines along."""
        return changes.delete_requests(node)

    def delete(self, node: Node, progress: Progress = silent) -> None:
        """Deletes until nothing of the node answers any more."""
        changes.delete(self.session, node, progress)

    def deadline_requests(self, node: Node, deadline: int | None) -> list[ApiRequest]:
        """Label changes on every machine of the node."""
        return changes.deadline_requests(self.session, node, deadline)

    def set_deadline(self, node: Node, deadline: int | None) -> Node:
        """Moves the labels of every machine, and of TPU nodes the metadata that is watched."""
        return changes.set_deadline(self.session, node, deadline)

    def doctor(self, instance_type: str = "") -> list[Check]:
        """Credentials, project, APIs, network; with a type, machine type and image per zone."""
        results = checks.google_checks(self.session)
        return results + (checks.verify_gce(self.session, instance_type) if instance_type else [])

"""What of a node exists at Google, how it goes away, and how its deadline moves."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from gml.config import Config
from gml.durations import format_duration
from gml.errors import Denied, GmlError, Incomplete, StockOut, Unavailable, UsageError
from gml.http import ApiError
from gml.model import ApiRequest, Node
from gml.providers import google_bodies as bodies
from gml.providers import google_seen as seen
from gml.providers.base import Tick, silent
from gml.providers.google_api import GoogleApi, raise_operation_error, translate, wait_pauses
from gml.providers.google_bodies import cloud_name, region
from gml.store import Store
from gml.threads import in_parallel


class GoogleLook:
    """The half of the Google provider that finds, deletes and relabels."""

    name = "google"

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.api = GoogleApi(config)
        self.ssh_user = config.google.ssh_user
        self.patience_s = 900.0

    def ready(self) -> bool:
        """Whether a project is set."""
        return bool(self.config.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT"))

    def sign_in(self) -> None:
        """A project, and a token, refreshed where it has expired; raises UsageError, AuthError."""
        _ = self.config.project
        self.api.token()

    def base_url(self, service: str) -> str:
        """Where a request goes."""
        return self.config.endpoint(service)

    def _wait_operation(self, request: ApiRequest, operation: dict[str, Any]) -> None:
        """Polls a long-running operation; a stock-out usually comes here, after the 200."""
        path = _operation_path(request, operation)
        waited = 0.0
        pauses = wait_pauses(min(1.0, self.config.backoff_s))
        while not (operation.get("done") or operation.get("status") == "DONE"):
            waited += next(pauses)
            if waited > self.patience_s:
                raise Unavailable(f"Google's operation took over {format_duration(waited)}")
            found = self.api.get(request.service, path)
            if found is None:
                return  # forgotten by Google; the resource itself will tell
            operation = found
        if operation.get("error"):
            raise_operation_error(operation["error"], self.config)

    def _location(self, zone: str) -> str:
        return f"projects/{self.config.project}/locations/{zone}"

    def _look(self, node_id: str, tried: str) -> Node | None:
        """What exists of a node in one place, by name: GETs do not lag behind as lists do."""
        strategy, _, zone = tried.partition(":")
        name, parts = cloud_name(node_id), []
        if strategy in ("node", "queued", "flex"):
            parts.append(self._get_part("tpu", f"v2/{self._location(zone)}/nodes/{name}"))
        if strategy in ("queued", "flex"):
            version = "v2alpha1" if strategy == "flex" else "v2"
            path = f"{version}/{self._location(zone)}/queuedResources/{name}"
            parts.append(self._get_part("tpu", path))
        if strategy == "gke":
            parts.append(self._get_part("container", f"v1/{self._location(zone)}/clusters/{name}"))
        if strategy == "gce":
            root = f"compute/v1/projects/{self.config.project}"
            sku_hosts = self._hosts_of(node_id)
            if sku_hosts == 1:
                parts.append(self._get_part("compute", f"{root}/zones/{zone}/instances/{name}"))
            else:
                parts += self._look_group(root, zone, name)
        merged = seen.merge([p for p in parts if p and p.id == node_id])
        return merged[0] if merged else None

    def _hosts_of(self, node_id: str) -> int:
        from gaia import hardware

        record = self.store.get(node_id)
        sku = hardware.skus().get(record.sku) if record else None
        return sku.hosts if sku else 0

    def _look_group(self, root: str, zone: str, name: str) -> list[Node | None]:
        """A single instance or a group: without a record both are asked for."""
        parts = [self._get_part("compute", f"{root}/zones/{zone}/instances/{name}")]
        for kind, place in (
            ("instanceGroupManagers", f"zones/{zone}"),
            ("instanceTemplates", "global"),
            ("resourcePolicies", f"regions/{region(zone)}"),
        ):
            parts.append(self._get_part("compute", f"{root}/{place}/{kind}/{name}"))
        if parts[1]:
            query = {"filter": f"name eq {name}-.*"}
            for page in self.api.pages("compute", f"{root}/zones/{zone}/instances", query):
                parts += [seen.instance(r, self.ssh_user) for r in page.get("items", [])]
        return parts

    def _get_part(self, service: str, path: str) -> Node | None:
        try:
            raw = self.api.get(service, path)
        except StockOut:
            return None  # a zone that is closed to the project holds nothing of ours
        return None if raw is None else part_of(raw, path, self.ssh_user)

    def list_nodes(self) -> list[Node]:
        """Nodes, queued resources, instances, groups, loose disks: all zones, by label."""
        project = self.config.project
        root, everywhere = f"compute/v1/projects/{project}", f"projects/{project}/locations/-"
        labelled, named = {"filter": "labels.gml=1"}, {"filter": "name eq gml-.*"}
        calls: list[tuple[str, str, dict[str, str], str]] = [
            ("tpu", f"v2/{everywhere}/nodes", {}, "nodes"),
            ("tpu", f"v2alpha1/{everywhere}/queuedResources", {}, "queuedResources"),
            ("compute", f"{root}/aggregated/instances", labelled, "instances"),
            ("compute", f"{root}/aggregated/instanceGroupManagers", named, "instanceGroupManagers"),
            ("compute", f"{root}/aggregated/disks", labelled, "disks"),
            ("compute", f"{root}/global/instanceTemplates", named, "instanceTemplates"),
            ("compute", f"{root}/aggregated/resourcePolicies", named, "resourcePolicies"),
            ("container", f"v1/{everywhere}/clusters", {}, "clusters"),
        ]
        parts: list[Node] = []
        problems: list[str] = []
        lock = threading.Lock()

        def look(service: str, path: str, params: dict[str, str], kind: str) -> None:
            try:
                pages = self.api.pages(service, path, params)
            except Denied as error:
                # An API that was never enabled holds nothing; anything else might.
                if "not enabled" not in error.problem:
                    with lock:
                        problems.append(str(error))
                return
            except GmlError as error:
                with lock:
                    problems.append(str(error))
                return
            with lock:
                for page in pages:
                    problems.extend(f"{u} unreachable" for u in _unreachable(page))
                    parts.extend(
                        p
                        for raw in _items(page, kind)
                        if (p := part_of(raw, raw["_path"], self.ssh_user))
                    )

        in_parallel([lambda c=c: look(*c) for c in calls])
        found = seen.merge(parts)
        if problems:
            raise Incomplete("; ".join(dict.fromkeys(problems)), found=found)
        return found

    def find(self, node: Node) -> Node | None:
        """Everything of the node, by name in the places that were tried, else by label."""
        places = node.tried or ((f"{node.strategy}:{node.zone}",) if node.zone else ())
        if not places and node.resources:
            # A leftover without a zone, such as a policy: look at it by its own name.
            asked = (self._get_part(*r.split(":", 1)) for r in node.resources)
            merged = seen.merge([p for p in asked if p and p.id == node.id])
            return merged[0] if merged else None
        if not places:
            return next((n for n in self.list_nodes() if n.id == node.id), None)
        parts = [p for place in places if (p := self._look(node.id, place))]
        merged = seen.merge(parts)
        return merged[0] if merged else None

    # ---- change

    def delete_requests(self, node: Node) -> list[ApiRequest]:
        """DELETEs of the known resources; groups and queued resources take their machines along."""
        owners = [r for r in node.resources if _owns(r)]
        machines = [r for r in node.resources if not _owns(r) and not _late(r)]
        late = [r for r in node.resources if _late(r)]
        return [bodies.delete_request(r) for r in (owners or machines) + late]

    def delete(self, node: Node, tick: Tick = silent) -> None:
        """Deletes until nothing of the node answers any more."""
        pauses = wait_pauses(min(1.0, self.config.backoff_s))
        waited, left = 0.0, node
        while True:
            for request in self.delete_requests(left):
                self._delete_one(request)
            found = self.find(node)
            others = [r for r in node.resources if found is None and self._exists(r)]
            if found is None and not others:
                return
            left = found if found else node.replace(resources=tuple(others))
            tick(f"waiting for Google to remove {node.id} ({left.state or 'leftovers'})")
            waited += next(pauses)
            if waited > self.patience_s:
                raise Unavailable(
                    f"{node.id} still exists after {format_duration(waited)}",
                    f"look with `gml node show {node.id}`; `gml reap` goes on trying",
                )

    def _exists(self, resource: str) -> bool:
        service, path = resource.split(":", 1)
        return self.api.get(service, path) is not None

    def _delete_one(self, request: ApiRequest) -> None:
        try:
            self.api.send(request)
        except ApiError as error:
            # 404: gone. 409, 412: busy creating or deleting, which the next round will see.
            if error.status not in (404, 409, 412):
                raise translate(error, self.config) from None
        except UsageError:
            # "not in a state to be deleted": the next round asks again, until patience ends.
            return

    def deadline_requests(self, node: Node, deadline: int | None) -> list[ApiRequest]:
        """Label changes on every machine of the node."""
        value = "none" if deadline is None else str(deadline)
        requests = []
        for resource in node.resources:
            service, path = resource.split(":", 1)
            if "/nodes/" in path:
                raw = self.api.get(service, path) or {}
                body = {
                    "labels": {**(raw.get("labels") or {}), "gml-deadline": value},
                    "metadata": {**(raw.get("metadata") or {}), "gml-deadline": value},
                }
                params = {"updateMask": "labels,metadata"}
                requests.append(ApiRequest(service, "PATCH", path, params, body))
            elif "/instances/" in path:
                raw = self.api.get(service, path) or {}
                body = {
                    "labels": {**(raw.get("labels") or {}), "gml-deadline": value},
                    "labelFingerprint": raw.get("labelFingerprint", ""),
                }
                requests.append(ApiRequest(service, "POST", f"{path}/setLabels", {}, body))
        return requests

    def set_deadline(self, node: Node, deadline: int | None) -> Node:
        """Moves the labels of every machine, and of TPU nodes the metadata that is watched."""
        live = self.find(node)
        if live is None:
            raise Unavailable(f"{node.id} is gone", "see `gml ls --refresh`")
        for request in self.deadline_requests(live, deadline):
            try:
                operation = self.api.send(request)
            except ApiError as error:
                raise translate(error, self.config) from None
            self._wait_operation(request, operation)
        return node.replace(deadline=deadline)


def part_of(raw: dict[str, Any], path: str, user: str = "") -> Node | None:
    """A resource as (a part of) a node, by what its path says it is; None when not ours."""
    if "/queuedResources/" in path:
        return seen.queued_resource(raw)
    if "/clusters/" in path:
        return seen.cluster(raw, path)
    if "/nodes/" in path:
        return seen.tpu_node(raw, user)
    if "/instances/" in path:
        return seen.instance(raw, user)
    if "/disks/" in path:
        return seen.disk(raw)
    if "/instanceGroupManagers/" in path:
        return seen.described(raw, "instanceGroupManagers", _place(path), "creating")
    kind = "instanceTemplates" if "/instanceTemplates/" in path else "resourcePolicies"
    return seen.described(raw, kind, _place(path), "leftover")


def _place(path: str) -> str:
    parts = Path(path).parts
    for kind in ("zones", "regions"):
        if kind in parts:
            return f"{kind}/{parts[parts.index(kind) + 1]}"
    return "global"


def _items(page: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Items of a TPU list, a global list or an aggregated list, each with its `_path`."""
    if kind in ("nodes", "queuedResources"):
        found = page.get(kind, [])
        return [{**raw, "_path": f"/{raw.get('name', '')}"} for raw in found]
    if kind == "clusters":
        return [{**raw, "_path": seen.cluster_path(raw)} for raw in page.get(kind, [])]
    if isinstance(page.get("items"), list):
        return [{**r, "_path": seen.self_path(r, kind, "global")} for r in page["items"]]
    found = []
    for place, scope in (page.get("items") or {}).items():
        found += [{**r, "_path": seen.self_path(r, kind, place)} for r in scope.get(kind, [])]
    return found


def _unreachable(page: dict[str, Any]) -> list[str]:
    keys = ("unreachable", "unreachables", "missingZones")
    found = [place for key in keys for place in page.get(key, [])]
    items = page.get("items")
    for place, scope in items.items() if isinstance(items, dict) else ():
        if (scope.get("warning") or {}).get("code") == "UNREACHABLE":
            found.append(place)
    return found


def _owns(resource: str) -> bool:
    kinds = ("/queuedResources/", "/instanceGroupManagers/", "/clusters/")
    return any(kind in resource for kind in kinds)


def _late(resource: str) -> bool:
    """What may go only after the group that uses it."""
    return "/instanceTemplates/" in resource or "/resourcePolicies/" in resource


def _operation_path(request: ApiRequest, operation: dict[str, Any]) -> str:
    name = str(operation.get("name", ""))
    if request.service == "tpu":
        return f"{request.path.split('/', 1)[0]}/{name}"
    # compute/v1/projects/P/zones/Z/… or compute/v1/projects/P/global/…
    parts = request.path.split("/")
    root = "/".join(parts[: 5 if parts[4] == "global" else 6])
    return f"{root}/operations/{name}"

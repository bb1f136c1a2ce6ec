"""Lambda Cloud through its REST API v1: live prices and capacity, its rate limits, no time limit.

Lambda bills until someone terminates, so the deadline stands in the instance's name
(`gml-ID--DEADLINE`, which can be changed later; tags can't) for `gml reap`, and on the machine for
the watchdog, which can only act with an API key of its own (`--self-terminate`).
There is no idempotency key: after a launch without an answer the list decides, never a blind retry.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gaia.hardware import Sku
from gml.config import Config
from gml.durations import format_duration
from gml.errors import AuthError, GmlError, StockOut, Unavailable, UsageError
from gml.http import ApiError, Http, NetworkError, unavailable
from gml.model import ApiRequest, CreateSpec, Host, Node, Offer, node_from_labels
from gml.progress import Progress, silent
from gml.providers.base import Check, check, check_free
from gml.providers.lambda_failures import translate
from gml.rate import turn
from gml.startup import STATE_DIR, startup_script, watchdog_config
from gml.store import Store

# Published limits: one request a second, one launch in twelve.
REQUEST_GAP_S = 1.0
LAUNCH_GAP_S = 12.0
# How long a new instance may be missing from the list; waited out before launching again.
LIST_LAG_S = 20.0
# A machine that boots may be unhealthy for so long before another one is asked for.
UNHEALTHY_BOOT_S = 600.0
_NAME = re.compile(r"gml-([a-z][a-z0-9-]*?)--(\d+|none)")
_STATES = {"active": "ready", "booting": "creating", "terminating": "deleting"}
_GONE = ("terminated", "deleting")


class LambdaProvider:
    """Lambda's instances behind gml's protocol."""

    name = "lambda"
    ssh_user = "ubuntu"

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.http = Http(
            config.endpoint("lambda"),
            lambda: {"Authorization": f"Bearer {self.api_key()}"},
            backoff_s=max(config.backoff_s, 1.5 * REQUEST_GAP_S),  # retries keep the gap too
        )
        self.patience_s = 1800.0
        self._types: dict[str, Any] | None = None

    def api_key(self) -> str:
        """The key from LAMBDA_API_KEY or the 0600 file; raises AuthError."""
        if key := os.environ.get("LAMBDA_API_KEY", "").strip():
            return key
        path = Path(self.config.lambda_.api_key_file).expanduser()
        try:
            if path.stat().st_mode & 0o077:
                raise AuthError(f"{path} is readable by others", f"run: chmod 600 {path}")
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise AuthError(
                "no Lambda API key", "run `gml init lambda`, or set LAMBDA_API_KEY"
            ) from None

    def ready(self) -> bool:
        """Tells whether there is a key."""
        path = Path(self.config.lambda_.api_key_file).expanduser()
        return bool(os.environ.get("LAMBDA_API_KEY")) or path.exists()

    def sign_in(self) -> None:
        """The API key; raises AuthError."""
        self.api_key()

    def ask_time(self) -> None:
        """Lambda's time, from an answer without a key."""
        self.http.ask_time()

    def base_url(self, service: str) -> str:
        """Base address of a service."""
        return self.config.endpoint("lambda")

    # ---- calls

    def _send(self, method: str, path: str, body: dict | None = None, *, tries: int = 5) -> Any:
        """`data` of the answer; raises GmlError (ApiError for 404, NetworkError for tries=1)."""
        request = ApiRequest("lambda", method, f"api/v1/{path}", {}, body)
        gaps = {"request": REQUEST_GAP_S}
        if path.endswith("/launch"):
            gaps["launch"] = LAUNCH_GAP_S
        with turn(self.config.home / "lambda.rate", gaps):
            try:
                return self.http.send(request, tries=tries).get("data")
            except ApiError as error:
                if error.status == 404 or (tries == 1 and error.status >= 429):
                    raise
                raise translate(error) from None
            except NetworkError as error:
                if tries == 1:
                    raise
                raise unavailable(error, "Lambda") from None

    # ---- offers

    def offers(
        self, sku: Sku, *, spot: bool, zone: str = "", live: bool = True, strategy: str = ""
    ) -> list[Offer]:
        """Regions with capacity now, at the live price; one offer without a zone when none has."""
        if not sku.lambda_type or spot:
            return []
        if self._types is None:
            self._types = self._send("GET", "instance-types") or {}
        entry = (self._types or {}).get(sku.lambda_type)
        if entry is None:
            return []
        price = entry["instance_type"]["price_cents_per_hour"] / 100
        regions = [r["name"] for r in entry.get("regions_with_capacity_available", [])]
        places = [r for r in regions if zone in ("", r)]
        common = ("watchdog + reap", "live")
        if not places:
            return [Offer(self.name, sku.name, zone, False, price, "none", "launch", *common)]
        return [
            Offer(self.name, sku.name, place, False, price, "now", "launch", *common)
            for place in places
        ]

    # ---- create

    def create_requests(self, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
        """The launch (and, at most once per owner, the registration of the ssh key)."""
        assert spec.sku is not None
        # Without a key the watchdog can only power off; the key comes later, over ssh.
        watchdog = watchdog_config(spec, delete=[], use_metadata=False)
        body = {
            "region_name": offer.zone,
            "instance_type_name": spec.sku.lambda_type,
            "ssh_key_names": [self._key_name(spec)],
            "name": instance_name(spec.id, spec.deadline),
            "user_data": startup_script(watchdog),
            "tags": [{"key": k, "value": v} for k, v in spec.labels().items()],
        }
        return [ApiRequest("lambda", "POST", "api/v1/instance-operations/launch", {}, body)]

    def _key_name(self, spec: CreateSpec) -> str:
        return f"{self.config.lambda_.ssh_key_name}-{spec.owner}"[:60]

    def _register_key(self, spec: CreateSpec) -> None:
        name = self._key_name(spec)
        keys = {k["name"]: k.get("public_key", "") for k in self._send("GET", "ssh-keys") or []}
        if name not in keys:
            self._send("POST", "ssh-keys", {"name": name, "public_key": spec.public_key})
        elif keys[name].split()[:2] != spec.public_key.split()[:2]:
            raise UsageError(
                f"Lambda's ssh key {name!r} is another key than {self.config.ssh_key}",
                "delete it at Lambda, or set lambda.ssh_key_name in config.toml",
            )

    def create(self, spec: CreateSpec, offer: Offer, progress: Progress = silent) -> Node:
        """Launches at most one instance, waits until it is active, removes any double."""
        if offer.capacity == "none":
            raise StockOut(f"Lambda has no {offer.sku} anywhere now", "try --retry-until-up")
        self._types = None  # the next round must see the capacity of then
        try:
            self._register_key(spec)
            existing = [n for n in self.list_nodes() if n.id == spec.id]
            check_free(existing, spec)
        except GmlError as error:
            error.nothing_made = True
            raise
        chosen = _instance_id(existing[0]) if existing else self._launch(spec, offer, progress)
        node = self._wait_active(chosen, spec, progress)
        for other in self.list_nodes():
            if spec.made(other) and _instance_id(other) != chosen:
                progress("terminating a double of the launch")
                self._terminate([_instance_id(other)])
        return node

    def _launch(self, spec: CreateSpec, offer: Offer, progress: Progress) -> str:
        request = self.create_requests(spec, offer)[0]
        for attempt in range(4):
            progress(f"asking Lambda to launch it in {offer.zone}")
            try:
                data = self._send("POST", "instance-operations/launch", request.body, tries=1)
                return data["instance_ids"][0]
            except ApiError as error:
                if error.status == 429:
                    time.sleep(LAUNCH_GAP_S)
                    continue
                if error.status < 500:
                    failure = translate(error)
                    failure.nothing_made = attempt == 0
                    raise failure from None
            except NetworkError:
                progress("looking whether it was launched: an answer got lost")
            # Carried out or not? Only the list can tell, and it lags.
            if listed := self._await_listed(spec.made):
                return _instance_id(listed)
            if attempt == 3:
                break
        raise Unavailable("Lambda did not take the launch", "try again later")

    def _await_listed(self, ours: Callable[[Node], bool]) -> Node | None:
        until = time.monotonic() + LIST_LAG_S
        while True:
            for node in self.list_nodes():
                if ours(node):
                    return node
            if time.monotonic() > until:
                return None
            time.sleep(min(2.0, LIST_LAG_S / 5))

    def _wait_active(self, instance_id: str, spec: CreateSpec, progress: Progress) -> Node:
        waited, unhealthy, pause = 0.0, 0.0, min(1.0, self.config.backoff_s)
        while True:
            try:
                node = self._node(self._send("GET", f"instances/{instance_id}"))
            except ApiError:
                node = None  # not listed yet
            if node and node.state == "ready" and node.hosts:
                return node
            if node and (node.dead() or node.state in _GONE):
                raise StockOut(f"Lambda's instance came up {node.state}", "try another region")
            unhealthy = unhealthy + pause if node and node.doubtful() else 0.0
            if unhealthy > UNHEALTHY_BOOT_S:
                raise StockOut("Lambda's instance stays unhealthy", "try another region")
            progress(f"waiting for {spec.id} to boot (minutes; billed from its health check on)")
            if waited > self.patience_s:
                raise Unavailable(f"{spec.id} did not boot within {format_duration(waited)}")
            time.sleep(pause)
            waited += pause
            pause = min(pause * 1.5, 10.0)

    def self_terminate_script(self, node: Node, spec: CreateSpec) -> str:
        """For ssh: gives the watchdog the key and the call that ends its machine."""
        delete = {
            "method": "POST",
            "url": f"{self.config.endpoint('lambda')}/api/v1/instance-operations/terminate",
            "body": {"instance_ids": [_instance_id(node)]},
            "auth": "file:/etc/gml/lambda.key",
        }
        config = watchdog_config(spec, delete=[delete], use_metadata=False)
        return (
            "set -eu\nsudo -n install -d -m 700 /etc/gml\numask 077\n"
            f"sudo -n tee /etc/gml/lambda.key >/dev/null <<'EOF'\n{self.api_key()}\nEOF\n"
            "sudo -n chmod 600 /etc/gml/lambda.key\n"
            f"sudo -n tee /opt/gml/watchdog.json >/dev/null <<'EOF'\n{json.dumps(config)}\nEOF\n"
            f"sudo -n rm -f {STATE_DIR}/beat\nsudo -n systemctl restart gml-watchdog.service\n"
        )

    # ---- look and change

    def _instances(self) -> list[Node]:
        nodes = [self._node(raw) for raw in self._send("GET", "instances") or []]
        return [n for n in nodes if n]

    def _node(self, raw: dict[str, Any]) -> Node | None:
        labels = {t["key"]: t["value"] for t in raw.get("tags") or []}
        match = _NAME.fullmatch(raw.get("name") or "")
        if match and "gml-id" not in labels:
            return None  # the name alone could be anybody's
        # Our tags under a changed name are still ours, with the deadline they were made with.
        if match and labels["gml-id"] == match[1]:
            labels["gml-deadline"] = match[2]
        price = (raw.get("instance_type") or {}).get("price_cents_per_hour")
        address = raw.get("ip") or ""
        status = str(raw.get("status", ""))
        return node_from_labels(
            labels,
            provider=self.name,
            zone=(raw.get("region") or {}).get("name", ""),
            state=_STATES.get(status, status),
            strategy="launch",
            price=None if price is None else price / 100,
            hosts=(Host(address, raw.get("private_ip") or "", _port(labels), self.ssh_user),)
            if address
            else (),
            resources=(f"lambda:{raw['id']}",),
        )

    def list_nodes(self) -> list[Node]:
        """Instances with our tags that are still billed."""
        return [n for n in self._instances() if n.state not in _GONE]

    def find(self, node: Node) -> Node | None:
        """The instance by tag. For a mere intent the list's lag is waited out first."""
        if node.phase == "intent" and node.tried:
            return self._await_listed(node.holds)
        return next(iter(self._billed(node)), None)

    def _billed(self, node: Node) -> list[Node]:
        """Instances of this node: listed ones, and the recorded one, which the list may lack."""
        listed = [n for n in self.list_nodes() if node.holds(n)]
        for resource in set(node.resources) - {r for n in listed for r in n.resources}:
            try:
                one = self._node(self._send("GET", f"instances/{resource.split(':', 1)[1]}"))
            except ApiError as error:
                if error.status != 404:
                    raise translate(error) from None
            else:
                listed += [one] if one and node.holds(one) and one.state not in _GONE else []
        return listed

    def ended_at(self, node: Node) -> int | None:
        """Nobody remembers."""
        return None

    def delete_requests(self, node: Node) -> list[ApiRequest]:
        """One terminate call."""
        ids = [r.split(":", 1)[1] for r in node.resources if r.startswith("lambda:")]
        body = {"instance_ids": ids}
        return [ApiRequest("lambda", "POST", "api/v1/instance-operations/terminate", {}, body)]

    def _terminate(self, ids: list[str]) -> None:
        try:
            self._send("POST", "instance-operations/terminate", {"instance_ids": ids})
        except ApiError as error:
            if error.status != 404:
                raise translate(error) from None

    def delete(self, node: Node, progress: Progress = silent) -> None:
        """Terminates every instance of the node; returns when none of them is billed."""
        waited, pause = 0.0, min(1.0, self.config.backoff_s)
        remaining = self._billed(node) if self.find(node) else []
        while remaining:
            self._terminate([_instance_id(n) for n in remaining])
            progress(f"waiting for Lambda to terminate {node.id}")
            time.sleep(pause)
            waited += pause
            if waited > self.patience_s:
                raise Unavailable(f"{node.id} is still there after {format_duration(waited)}")
            remaining = self._billed(node)

    def deadline_requests(self, node: Node, deadline: int | None) -> list[ApiRequest]:
        """The rename that carries the deadline."""
        body = {"name": instance_name(node.id, deadline)}
        return [
            ApiRequest("lambda", "POST", f"api/v1/instances/{r.split(':', 1)[1]}", {}, body)
            for r in node.resources
            if r.startswith("lambda:")
        ]

    def set_deadline(self, node: Node, deadline: int | None) -> Node:
        """Renames the instance."""
        live = self.find(node)
        if live is None:
            raise Unavailable(f"{node.id} is gone", "see `gml ls --refresh`")
        for request in self.deadline_requests(live, deadline):
            try:
                self._send("POST", request.path.removeprefix("api/v1/"), request.body)
            except ApiError as error:
                raise translate(error) from None
        return node.replace(deadline=deadline)

    def doctor(self, instance_type: str = "") -> list[Check]:
        """Key and reachability."""
        try:
            count = len(self._send("GET", "instance-types") or {})
            return [check("lambda API", True, f"{count} types")]
        except GmlError as error:
            return [check("lambda API", False, error.problem, error.remedy)]


def instance_name(node_id: str, deadline: int | None) -> str:
    """`gml-ID--DEADLINE`, at most 64 characters."""
    return f"gml-{node_id}--{'none' if deadline is None else deadline}"


def _instance_id(node: Node) -> str:
    return node.resources[0].split(":", 1)[1]


def _port(labels: dict[str, str]) -> int:
    text = labels.get("gml-ssh-port", "")
    return int(text) if text.isdigit() else 22

"""A fake cloud on loopback: TPU, Compute, Storage, Lambda and metadata APIs in one HTTP server.

It keeps the published behaviours that hurt: errors in the operation after the 200, lists that lag,
409 for names in use, label rules, rate limits. `faults` decides per call what goes wrong, and
`log` records every call, so that a test can enumerate them. Time can be moved with `offset`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlparse

LABEL = re.compile(r"[a-z0-9_-]{0,63}")
TOKEN = "ya29.fake-access-token"
LAMBDA_KEY = "lambda-secret-key-123"


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, reason: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.details = status, reason, message, details


@dataclass
class Call:
    """One request as it arrived. `mutating` is everything but GET."""

    number: int
    service: str
    method: str
    path: str
    query: dict[str, str]
    body: Any
    mutating: bool


@dataclass
class Cloud:
    """All state. Faults: a function of the call that returns None or one of
    ("status", code), ("answer", code, body), ("drop", "before"|"after"), or runs something itself
    ("hook", f, when)."""

    op_delay: float = 0.02
    list_lag: float = 0.0
    offset: float = 0.0
    enforce_limits: bool = False
    addresses: list[tuple[str, int]] = field(default_factory=lambda: [("127.0.0.1", 22)])
    faults: Callable[[Call], Any] = lambda call: None

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.log: list[Call] = []
        self.violations: list[str] = []
        self.resources: dict[str, dict[str, Any]] = {}
        self.born: dict[str, float] = {}
        self.ops: dict[str, dict[str, Any]] = {}
        self.pending: list[tuple[float, Callable[[], None]]] = []
        self.seen_request_ids: dict[str, dict[str, Any]] = {}
        self.buckets: dict[str, str] = {"here": "US-EAST5"}
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, str] = {}
        self.page_size = 1000
        self.stockout: set[str] = set()
        self.quota: set[str] = set()
        self.closed_zones: set[str] = set()
        self.disabled: set[str] = set()
        self.denied: set[str] = set()
        self.unreachable: set[str] = set()
        self.forget_limit = False
        self.lambda_keys: dict[str, str] = {}
        self.lambda_last: dict[str, float] = {"request": 0.0, "launch": 0.0}
        self.lambda_gaps = {"request": 0.0, "launch": 0.0}
        self.metadata: dict[str, str] = {}
        self.deny_metadata = False
        self.counter = 0
        self.on_create: Callable[[str, dict[str, Any]], None] = lambda name, raw: None

    def now(self) -> float:
        return time.time() + self.offset

    def new_generation(self) -> str:
        return str(time.time_ns())

    def number(self) -> int:
        self.counter += 1
        return self.counter

    def later(self, action: Callable[[], None], delay: float | None = None) -> None:
        due = time.monotonic() + (self.op_delay if delay is None else delay)
        self.pending.append((due, action))

    def settle(self) -> None:
        """Carries out what is due, whether anybody asks for it or not."""
        with self.lock:
            now = time.monotonic()
            due = [a for d, a in self.pending if d <= now]
            self.pending = [(d, a) for d, a in self.pending if d > now]
            for action in due:
                action()
            if self.enforce_limits:
                from tests.fakes.google import enforce

                enforce(self)

    def drain(self) -> None:
        """Waits until nothing is pending."""
        while self.pending:
            time.sleep(0.005)
            self.settle()

    def put(self, name: str, raw: dict[str, Any]) -> dict[str, Any]:
        self.resources[name] = raw
        self.born[name] = time.monotonic()
        return raw

    def listed(self, pattern: str) -> list[tuple[str, dict[str, Any]]]:
        """Resources by name pattern that lists show by now."""
        now = time.monotonic()
        return [
            (n, r)
            for n, r in list(self.resources.items())
            if re.fullmatch(pattern, n) and now - self.born[n] >= self.list_lag
        ]

    def deleted_in_console(self, name: str, ago: float) -> None:
        """Takes a machine away as somebody else would, so many seconds ago; its operation stays."""
        ended = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime(self.now() - ago))
        for full in [n for n in self.resources if n.rsplit("/", 1)[-1] == name]:
            del self.resources[full]
            parent, number = full.rsplit("/", 2)[0], self.number()
            # Fields as in the discovery documents: tpu.v2 OperationMetadata, compute.v1 Operation.
            about: dict[str, Any] = {"verb": "delete", "target": full, "endTime": ended}
            op = {"name": f"op-{number}", "done": True, "metadata": about}
            if full.startswith("compute/"):
                link = f"https://www.googleapis.com/{full}"
                op = {"name": f"op-{number}", "status": "DONE", "operationType": "delete",
                      "targetLink": link, "endTime": ended}  # fmt: skip
            self.ops[f"{parent}/operations/op-{number}"] = op

    def billable(self) -> list[str]:
        """Everything that costs money or holds quota."""
        self.settle()
        kinds = ("/nodes/", "/queuedResources/", "/instances/", "/disks/", "/addresses/",
                 "/instanceGroupManagers/", "/clusters/", "lambda/")  # fmt: skip
        return sorted(
            n
            for n, r in self.resources.items()
            if any(k in n or n.startswith(k) for k in kinds)
            and not (n.startswith("lambda/") and r["status"] in ("terminated", "terminating"))
        )

    def mutations(self) -> list[Call]:
        return [c for c in self.log if c.mutating]

    def check_labels(self, labels: dict[str, str] | None) -> None:
        for key, value in (labels or {}).items():
            if not LABEL.fullmatch(key) or not LABEL.fullmatch(value) or not key[:1].isalpha():
                raise Refused(400, "INVALID_ARGUMENT", f"Invalid label {key}={value}")


class Server:
    """The cloud's HTTP server; `environment()` points gml at it."""

    def __init__(self, cloud: Cloud) -> None:
        handler = type("Handler", (_Handler,), {"cloud": cloud})
        self.cloud = cloud
        self.http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        services = ("tpu", "compute", "storage", "lambda", "metadata", "run", "container")
        return {f"GML_ENDPOINT_{s.upper()}": f"{self.url}/{s}" for s in services} | {
            "GOOGLE_OAUTH_ACCESS_TOKEN": TOKEN,
            "GOOGLE_CLOUD_PROJECT": "proj-123",
        }

    def reset(self, cloud: Cloud) -> Cloud:
        """Puts a fresh cloud behind the same address."""
        self.cloud = cloud
        self.http.RequestHandlerClass = type("Handler", (_Handler,), {"cloud": cloud})
        return cloud

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Killed clients break their connections; that is what they are for.
        return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    cloud: Cloud

    def log_message(self, *args: Any) -> None:
        return

    def _go(self) -> None:
        cloud, url = self.cloud, urlparse(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        is_json = "json" in self.headers.get("Content-Type", "")
        body = json.loads(raw) if raw and is_json else None
        service, _, rest = url.path.lstrip("/").partition("/")
        query = dict(parse_qsl(url.query))
        with cloud.lock:
            cloud.settle()
            call = Call(
                len(cloud.log), service, self.command, rest, query, body, self.command != "GET"
            )
            cloud.log.append(call)
            fault = cloud.faults(call)
        if fault and fault[0] == "hook" and fault[2] == "before":
            fault[1]()
            return
        if fault == ("drop", "before"):
            return
        if fault and fault[0] == "answer":
            self._answer(fault[1], fault[2])
            return
        if fault and fault[0] == "status":
            text = {"error": {"code": fault[1], "status": "FAULT", "message": "injected"}}
            self._answer(fault[1], text)
            return
        try:
            with cloud.lock:
                status, answer = self._route(call, raw)
        except Refused as error:
            status, answer = error.status, _error(call.service, error)
        if fault and fault[0] == "hook":
            fault[1]()
            return
        if fault == ("drop", "after"):
            return
        self._answer(status, answer)

    def _route(self, call: Call, raw: bytes) -> tuple[int, Any]:
        from tests.fakes import google, lambda_api

        if call.service == "lambda":
            if self.headers.get("Authorization") != f"Bearer {LAMBDA_KEY}":
                raise Refused(401, "global/invalid-api-key", "API key was invalid")
            return lambda_api.route(self.cloud, call)
        if call.service == "metadata":
            return google.metadata(self.cloud, call, self.headers)
        if call.service == "token":
            return 200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "UNAUTHENTICATED", "invalid authentication credentials")
        return google.route(self.cloud, call, raw)

    def date_time_string(self, timestamp: float | None = None) -> str:
        # The Date header goes by the service's clock, which a test may move.
        return super().date_time_string(self.cloud.now() if timestamp is None else timestamp)

    def _answer(self, status: int, value: Any) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _go


def _error(service: str, error: Refused) -> dict[str, Any]:
    if service == "lambda":
        return {"error": {"code": error.reason, "message": error.message}}
    value: dict[str, Any] = {
        "code": error.status, "status": error.reason, "message": error.message
    }  # fmt: skip
    if error.details:
        value["details"] = error.details
    return {"error": value}

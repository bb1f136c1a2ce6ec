"""Serves the page and its data. Read-only, for this machine: it answers only to its own address.

Binding to 127.0.0.1 does not keep web pages out (a foreign page can resolve its own name to
127.0.0.1), so a Host header that is no address and not localhost is refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gaia_metrics.errors import MetricsError
from gaia_metrics.query import Source, comparison

HERE = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/uPlot.js": ("vendor/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uPlot.css": ("vendor/uPlot.min.css", "text/css; charset=utf-8"),
}
Query = dict[str, list[str]]


def serve(source: Source, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A bound server; the caller runs `serve_forever`. Raises MetricsError on a port in use."""
    calls: dict[str, Callable[[Query], Any]] = {
        "/api/runs": lambda q: source.runs(),
        "/api/metrics": lambda q: _metric_names(source, q["run"]),
        "/api/series": lambda q: _series(source, q),
        "/api/system": lambda q: _by_metric(source.system(q["run"][0])),
        "/api/texts": lambda q: source.texts(q["run"][0], q.get("kind", ["text"])[0]),
        "/api/compare": lambda q: comparison(source, q["run"]),
    }
    try:
        server = ThreadingHTTPServer((host, port), _handler(calls))
    except (OSError, OverflowError) as error:
        raise MetricsError(f"port {port} cannot be used ({error})", "choose another --port") \
            from error  # fmt: skip
    server.daemon_threads = True
    return server


def _metric_names(source: Source, runs: list[str]) -> list[str]:
    return sorted({m["metric"] for run in runs for m in source.metrics(run)})


def _series(source: Source, query: Query) -> dict:
    """{metric: {run: {x, y, low, high}}}: arrays, so that uPlot takes them as they are."""
    columns = source.series(
        query["run"],
        query["metric"],
        query.get("x", ["step"])[0],
        int(query.get("points", ["1000"])[0]),
    )
    out: dict[str, dict[str, dict[str, list]]] = {}
    keys = ("run", "metric", "x", "value", "low", "high")
    for run, metric, x, value, low, high in zip(*(columns[k] for k in keys), strict=True):
        line = out.setdefault(metric, {}).setdefault(run, {"x": [], "y": [], "low": [], "high": []})
        line["x"].append(_shown(x))
        line["y"].append(_shown(value))
        line["low"].append(_shown(low))
        line["high"].append(_shown(high))
    return out


def _by_metric(columns: dict) -> dict:
    out: dict[str, dict[str, list]] = {}
    for metric, x, value in zip(columns["metric"], columns["x"], columns["value"], strict=True):
        line = out.setdefault(metric, {"x": [], "y": []})
        line["x"].append(x)
        line["y"].append(_shown(value))
    return out


def _shown(value: float | None) -> float | None:
    """Round to seven digits, more than a screen shows; None (a gap) for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def own_address(host: str | None) -> bool:
    """Return True where a Host header names this server by address or as localhost."""
    name = urlsplit(f"//{host or ''}").hostname or ""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _handler(calls: dict[str, Callable[[Query], Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Answer a file or a call."""
            url = urlsplit(self.path)
            if not own_address(self.headers.get("host")):
                self.answer(403, "text/plain", b"open this page by its address")
            elif url.path in FILES:
                name, kind = FILES[url.path]
                self.answer(200, kind, (HERE / name).read_bytes())
            elif url.path in calls:
                self.call(calls[url.path], parse_qs(url.query))
            else:
                self.answer(404, "text/plain", b"no such page")

        def call(self, function: Callable[[Query], Any], query: Query) -> None:
            """Answer JSON; a user's mistake is 400 with its one line."""
            try:
                status, data = 200, function(query)
            except MetricsError as error:
                status, data = 400, {"error": str(error)}
            except (KeyError, ValueError, IndexError) as error:
                status, data = 400, {"error": f"bad request: {error!r}"}
            except Exception as error:  # a damaged file: say it on the page, serve the rest
                status, data = 500, {"error": f"{type(error).__name__}: {error}"[:300]}
            try:
                body = json.dumps(data, allow_nan=False, default=str)
            except ValueError:
                body = json.dumps(_finite(data), default=str)
            self.answer(status, "application/json", body.encode())

        def answer(self, status: int, kind: str, body: bytes) -> None:
            """Send, compressed where it pays. A page that is gone by now is no trouble."""
            with contextlib.suppress(ConnectionError):
                self.send(status, kind, body)

        def send(self, status: int, kind: str, body: bytes) -> None:
            """Write headers and body."""
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("cache-control", "no-store")
            self.send_header("x-content-type-options", "nosniff")
            self.send_header("content-security-policy", "default-src 'self'; img-src 'self' data:")
            if len(body) > 4096 and "deflate" in self.headers.get("accept-encoding", ""):
                body = zlib.compress(body, 1)
                self.send_header("content-encoding", "deflate")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: the terminal belongs to the user."""

    return Handler

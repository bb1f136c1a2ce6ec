"""Serves the page and its data. Read-only, for this machine: it answers only to its own address.

Binding to 127.0.0.1 does not keep web pages out (a foreign page can resolve its own name to
127.0.0.1), so a Host header that is no address, not localhost and not allowed is refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import zlib
from collections.abc import Callable, Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gaia_metrics.errors import MetricsError
from gaia_metrics.query import Source
from gaia_metrics.ui.calls import Query, calls, finite

HERE = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
# Page addresses and their files: what lies in this folder, and nothing else.
FILES = {f"/{path.name}": path for path in HERE.iterdir() if path.suffix in KINDS}
FILES |= {
    "/": HERE / "index.html",
    "/uPlot.js": HERE / "vendor/uPlot.iife.min.js",
    "/uPlot.css": HERE / "vendor/uPlot.min.css",
}


def serve(
    source: Source, host: str = "127.0.0.1", port: int = 0, names: Collection[str] = ()
) -> ThreadingHTTPServer:
    """Bind a server; the caller runs `serve_forever`.

    Args:
        source: the runs.
        host, port: the address to listen on; port 0 picks a free one.
        names: host names that the page may be opened by, beside addresses and localhost.

    Raises:
        MetricsError: the port cannot be used.
    """
    try:
        server = ThreadingHTTPServer((host, port), _handler(calls(source), frozenset(names)))
    except (OSError, OverflowError) as error:
        raise MetricsError(f"port {port} cannot be used ({error})", "choose another --port") \
            from error  # fmt: skip
    server.daemon_threads = True
    return server


def own_address(host: str | None, names: Collection[str] = ()) -> bool:
    """Return True where a Host header names this server by address, as localhost or by `names`."""
    name = urlsplit(f"//{host or ''}").hostname or ""
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _result(function: Callable[[Query], Any], query: Query) -> tuple[int, bytes]:
    """Return the status and JSON of a call; its errors are answers too."""
    try:
        status, data = 200, function(query)
    except MetricsError as error:
        status, data = 400, {"error": str(error)}
    except (KeyError, ValueError, IndexError) as error:
        status, data = 400, {"error": f"bad request: {error!r}"}
    except Exception as error:  # a damaged file: say it on the page, serve the rest
        status, data = 500, {"error": f"{type(error).__name__}: {error}"[:300]}
    try:
        return status, json.dumps(data, allow_nan=False, default=str).encode()
    except ValueError:
        return status, json.dumps(finite(data), default=str).encode()


def _handler(
    calls: dict[str, Callable[[Query], Any]], names: Collection[str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Answer a file or a call."""
            url = urlsplit(self.path)
            if not own_address(self.headers.get("host"), names):
                self.answer(403, "text/plain", b"open this page by its address, or see --name")
            elif url.path in FILES:
                path = FILES[url.path]
                self.answer(200, KINDS[path.suffix], path.read_bytes())
            elif url.path in calls:
                self.call(calls[url.path], parse_qs(url.query))
            else:
                self.answer(404, "text/plain", b"no such page")

        def call(self, function: Callable[[Query], Any], query: Query) -> None:
            """Answer JSON; a user's mistake is 400 with its one line."""
            status, body = _result(function, query)
            self.answer(status, "application/json", body)

        def answer(self, status: int, kind: str, body: bytes) -> None:
            """Send, compressed where it pays. A page that is gone by now is no trouble."""
            tag = f'"{zlib.crc32(body):08x}-{len(body):x}"'
            if status == 200 and self.headers.get("if-none-match") == tag:
                status, body = 304, b""
            with contextlib.suppress(ConnectionError):
                self.send(status, kind, body, tag)

        def send(self, status: int, kind: str, body: bytes, tag: str) -> None:
            """Write headers and body."""
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("cache-control", "no-cache")
            self.send_header("etag", tag)
            self.send_header("x-content-type-options", "nosniff")
            self.send_header("content-security-policy", "default-src 'self'; img-src 'self' data:")
            if len(body) > 4096 and "deflate" in self.headers.get("accept-encoding", ""):
                body = zlib.compress(body, 1)
                self.send_header("content-encoding", "deflate")
            if status != 304:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: the terminal belongs to the user."""

    return Handler

"""Settings of sending, from the standard OTEL_EXPORTER_OTLP_* variables.

Source: "OpenTelemetry Protocol Exporter" (environment variables, default values).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from gaia_metrics.errors import MetricsError

PATHS = {b"m": "/v1/metrics", b"l": "/v1/logs"}
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, "token"
MAX_TIMEOUT_MS = 10**9  # twelve days; sockets take no number of any size
SIGNALS = {b"m": "METRICS", b"l": "LOGS"}


@dataclass(frozen=True)
class ExportSettings:
    """Address, protocol and credentials from OTEL_EXPORTER_OTLP_* (METRICS_ and LOGS_ forms win).

    Attributes:
        endpoints: URL by signal (b"m", b"l").
        protocol: "grpc" or "http/protobuf".
        headers: sent with each request, for example {"authorization": "Bearer …"}; not in repr.
        gzip: whether bodies are compressed.
        timeout_s: for one request; None, which OpenTelemetry spells 0, sets no limit.
        certificate, client_certificate, client_key: PEM files, or None.
        insecure: gRPC without TLS for an endpoint that has no scheme.
    """

    endpoints: Mapping[bytes, str]
    protocol: str
    headers: Mapping[str, str] = field(repr=False)
    gzip: bool
    timeout_s: float | None
    certificate: str | None
    client_certificate: str | None
    client_key: str | None
    insecure: bool

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ExportSettings | None:
        """The settings, or None where no endpoint is set: the run is recorded locally only.

        Raises MetricsError for a value that OpenTelemetry does not define.
        """

        def get(name: str, default: str = "") -> str:
            prefix = "OTEL_EXPORTER_OTLP_"
            return env.get(f"{prefix}METRICS_{name}") or env.get(prefix + name) or default

        if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").rstrip("/")
        protocol = get("PROTOCOL", "http/protobuf")
        if protocol not in ("grpc", "http/protobuf"):
            raise MetricsError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}", "use grpc or http/protobuf"
            )
        endpoints = {}
        for signal, path in PATHS.items():
            variable = f"OTEL_EXPORTER_OTLP_{SIGNALS[signal]}_ENDPOINT"
            own = env.get(variable)
            if own or base:
                url = own or (base if protocol == "grpc" else base + path)
                source = variable if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
                endpoints[signal] = _checked(source, url, protocol)
        if not endpoints:
            return None
        if b"m" not in endpoints:
            raise MetricsError(
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT is set, but no endpoint for metrics",
                "set OTEL_EXPORTER_OTLP_ENDPOINT",
            )
        compression = get("COMPRESSION", "none")
        if compression not in ("none", "gzip"):
            raise MetricsError(
                f"OTEL_EXPORTER_OTLP_COMPRESSION={compression!r}", "use gzip or none"
            )
        timeout = get("TIMEOUT", "10000")
        if not (timeout.isascii() and timeout.isdigit()):
            raise MetricsError(f"OTEL_EXPORTER_OTLP_TIMEOUT={timeout!r}", "give milliseconds")
        for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
            if get(name) and not os.access(get(name), os.R_OK):
                raise MetricsError(
                    f"OTEL_EXPORTER_OTLP_{name}={get(name)!r} cannot be read", "give a PEM file"
                )
        return cls(
            endpoints=endpoints,
            protocol=protocol,
            headers=_headers(get("HEADERS")),
            gzip=compression == "gzip",
            timeout_s=min(int(timeout), MAX_TIMEOUT_MS) / 1000 or None,
            certificate=get("CERTIFICATE") or None,
            client_certificate=get("CLIENT_CERTIFICATE") or None,
            client_key=get("CLIENT_KEY") or None,
            insecure=get("INSECURE").lower() == "true",
        )


def _checked(variable: str, url: str, protocol: str) -> str:
    """Return an endpoint that can be connected to. Raises MetricsError, before a thread tries."""
    # gRPC takes host:port as well.
    text = url if "://" in url or protocol != "grpc" else f"//{url}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # the port is read here, and may raise
    except ValueError as error:
        raise MetricsError(f"{variable}={url!r}: {error}", "give http(s)://HOST:PORT") from error
    schemes = ("http", "https", "") if protocol == "grpc" else ("http", "https")
    if not host or parts.scheme not in schemes or not url.isprintable() or " " in url:
        raise MetricsError(f"{variable}={url!r} is no address", "give http(s)://HOST:PORT")
    if parts.username or parts.password:
        raise MetricsError(
            f"{variable} holds a user or password", "put it into OTEL_EXPORTER_OTLP_HEADERS"
        )
    return url


def _headers(text: str) -> dict[str, str]:
    """Read `key=value,key=value`, percent-encoded (the W3C baggage format)."""
    headers = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        # The value may be a secret: an error names only the place.
        if not equals:
            raise MetricsError("OTEL_EXPORTER_OTLP_HEADERS has a part without '='", "key=value,…")
        name, content = unquote(key.strip()).lower(), unquote(value.strip())
        if not _TOKEN.fullmatch(name):
            raise MetricsError(
                f"OTEL_EXPORTER_OTLP_HEADERS: {name!r} is no header name", "key=value,…"
            )
        if not content.isascii() or not content.isprintable():
            raise MetricsError(
                f"OTEL_EXPORTER_OTLP_HEADERS: {name}'s value holds a line end or the like",
                "take it out (a newline at the end of a token's file?)",
            )
        headers[name] = content
    return headers

"""Settings of sending, from the standard OTEL_EXPORTER_OTLP_* variables.

Source: "OpenTelemetry Protocol Exporter" (environment variables, default values).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from gaia_metrics.errors import MetricsError

PATHS = {b"m": "/v1/metrics", b"l": "/v1/logs"}
SIGNALS = {b"m": "METRICS", b"l": "LOGS"}


@dataclass(frozen=True)
class ExportSettings:
    """Address, protocol and credentials from OTEL_EXPORTER_OTLP_* (METRICS_ and LOGS_ forms win).

    Attributes:
        endpoints: URL by signal (b"m", b"l").
        protocol: "grpc" or "http/protobuf".
        headers: sent with each request, for example {"authorization": "Bearer …"}; not in repr.
        gzip: whether bodies are compressed.
        timeout_s: for one request.
        certificate, client_certificate, client_key: PEM files, or None.
        insecure: gRPC without TLS for an endpoint that has no scheme.
    """

    endpoints: Mapping[bytes, str]
    protocol: str
    headers: Mapping[str, str] = field(repr=False)
    gzip: bool
    timeout_s: float
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
            own = env.get(f"OTEL_EXPORTER_OTLP_{SIGNALS[signal]}_ENDPOINT")
            if own or base:
                endpoints[signal] = own or (base if protocol == "grpc" else base + path)
        if b"m" not in endpoints:
            return None
        compression = get("COMPRESSION", "none")
        if compression not in ("none", "gzip"):
            raise MetricsError(
                f"OTEL_EXPORTER_OTLP_COMPRESSION={compression!r}", "use gzip or none"
            )
        timeout = get("TIMEOUT", "10000")
        if not timeout.isdigit():
            raise MetricsError(f"OTEL_EXPORTER_OTLP_TIMEOUT={timeout!r}", "give milliseconds")
        return cls(
            endpoints=endpoints,
            protocol=protocol,
            headers=_headers(get("HEADERS")),
            gzip=compression == "gzip",
            timeout_s=int(timeout) / 1000,
            certificate=get("CERTIFICATE") or None,
            client_certificate=get("CLIENT_CERTIFICATE") or None,
            client_key=get("CLIENT_KEY") or None,
            insecure=get("INSECURE").lower() == "true",
        )


def _headers(text: str) -> dict[str, str]:
    """`key=value,key=value`, percent-encoded (the W3C baggage format)."""
    headers = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            # The value may be a secret: name only the place.
            raise MetricsError("OTEL_EXPORTER_OTLP_HEADERS has a part without '='", "key=value,…")
        headers[unquote(key.strip()).lower()] = unquote(value.strip())
    return headers

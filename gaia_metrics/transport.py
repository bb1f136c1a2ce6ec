"""The standard OTLP services: gRPC and HTTP/protobuf, set up by the standard OTEL_* variables.

Both send the spooled bytes as they are. HTTP needs the standard library only, gRPC the `metrics`
extra. Sources: "OpenTelemetry Protocol Exporter" (environment variables, default values) and
"OTLP specification" (which answers may be tried again).
"""

from __future__ import annotations

import email.utils
import gzip
import http.client
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from gaia_metrics import wire
from gaia_metrics.errors import MetricsError

PATHS = {b"m": "/v1/metrics", b"l": "/v1/logs"}
SIGNALS = {b"m": "METRICS", b"l": "LOGS"}
_SERVICE = "/opentelemetry.proto.collector.{0}.v1.{1}Service/Export"
GRPC_METHODS = {
    b"m": _SERVICE.format("metrics", "Metrics"),
    b"l": _SERVICE.format("logs", "Logs"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        kind: "ok", "retry" (not now), "denied" (token or certificate: kept until it is mended) or
            "rejected" (the receiver will never take these bytes).
        detail: what the receiver or the network said.
        retry_after: seconds the receiver asked to wait, or 0.
    """

    kind: str
    detail: str = ""
    retry_after: float = 0.0


@dataclass(frozen=True)
class ExportSettings:
    """Where and how to send, from OTEL_EXPORTER_OTLP_* (a METRICS_ or LOGS_ variable wins).

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


class Transport(Protocol):
    """Sends one request and waits for the answer. Used by one thread."""

    def send(self, signal: bytes, request: bytes) -> Outcome:
        """Send spooled bytes; never raises."""
        ...

    def close(self) -> None:
        """Drop the connection."""


def connect(settings: ExportSettings) -> Transport:
    """The transport for the protocol. Raises MetricsError where grpcio is not installed."""
    if settings.protocol == "grpc":
        return GrpcTransport(settings)
    return HttpTransport(settings)


class HttpTransport:
    """OTLP/HTTP with binary protobuf, over one kept-alive connection per signal."""

    def __init__(self, settings: ExportSettings) -> None:
        self._settings = settings
        self._connections: dict[bytes, http.client.HTTPConnection] = {}

    def send(self, signal: bytes, request: bytes) -> Outcome:
        """POST one request."""
        settings = self._settings
        headers = {"content-type": "application/x-protobuf", **settings.headers}
        if settings.gzip:
            request = gzip.compress(request, compresslevel=1, mtime=0)
            headers["content-encoding"] = "gzip"
        try:
            connection = self._connection(signal)
            connection.request("POST", urlsplit(settings.endpoints[signal]).path, request, headers)
            response = connection.getresponse()
            body = response.read()
        except ssl.SSLCertVerificationError as error:
            self._forget(signal)
            return Outcome("denied", f"certificate refused: {error.verify_message}")
        except (OSError, http.client.HTTPException) as error:
            self._forget(signal)
            return Outcome("retry", f"{type(error).__name__}: {error}")
        if response.will_close:
            self._forget(signal)
        return _http_outcome(response, body)

    def _connection(self, signal: bytes) -> http.client.HTTPConnection:
        connection = self._connections.get(signal)
        if connection is None:
            settings, url = self._settings, urlsplit(self._settings.endpoints[signal])
            if url.scheme not in ("http", "https") or not url.hostname:
                raise OSError(f"{url.geturl()!r} is not an http:// or https:// address")
            timeout = settings.timeout_s
            if url.scheme == "https":
                context = ssl.create_default_context(cafile=settings.certificate)
                if settings.client_certificate:
                    context.load_cert_chain(settings.client_certificate, settings.client_key)
                connection = http.client.HTTPSConnection(
                    url.hostname, url.port, timeout=timeout, context=context
                )
            else:
                connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
            self._connections[signal] = connection
        return connection

    def _forget(self, signal: bytes) -> None:
        connection = self._connections.pop(signal, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Drop the connections."""
        for signal in list(self._connections):
            self._forget(signal)


def _http_outcome(response: http.client.HTTPResponse, body: bytes) -> Outcome:
    status = response.status
    if status == 200:
        return _accepted(body)
    detail = f"HTTP {status} {response.reason}"
    if status in (401, 403):
        return Outcome("denied", detail)
    # The specification retries 429, 502, 503 and 504; a plain 500 is tried again too, because
    # sending twice does no harm here and losing a batch does.
    if status == 429 or status >= 500:
        return Outcome("retry", detail, _retry_after(response.getheader("retry-after")))
    return Outcome("rejected", f"{detail}: {body[:200]!r}")


def _accepted(body: bytes) -> Outcome:
    count, message = wire.rejected(body)
    return Outcome("ok", f"the receiver rejected {count} points: {message}" if count else "")


def _retry_after(header: str | None) -> float:
    if not header:
        return 0.0
    if header.isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


class GrpcTransport:
    """OTLP/gRPC; one channel for all signals."""

    def __init__(self, settings: ExportSettings) -> None:
        try:
            import grpc  # pyright: ignore
        except ImportError as error:
            raise MetricsError(
                "OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs grpcio, which is not installed",
                "install gaia[metrics] or use http/protobuf",
            ) from error
        self._grpc: Any = grpc
        self._settings = settings
        self._channels: dict[str, Any] = {}

    def send(self, signal: bytes, request: bytes) -> Outcome:
        """Call Export once."""
        grpc, settings = self._grpc, self._settings
        try:
            call = self._channel(settings.endpoints[signal]).unary_unary(GRPC_METHODS[signal])
            body = call(
                request,
                timeout=settings.timeout_s,
                metadata=tuple(settings.headers.items()),
                compression=grpc.Compression.Gzip if settings.gzip else None,
            )
            return _accepted(body)
        except grpc.RpcError as error:
            return self._failed(error)
        except OSError as error:
            return Outcome("denied", f"{type(error).__name__}: {error}")

    def _failed(self, error: Any) -> Outcome:
        code = error.code()
        detail = f"{code.name}: {error.details()}"
        if code.name in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return Outcome("denied", detail)
        if "CERTIFICATE_VERIFY_FAILED" in detail:
            return Outcome("denied", f"certificate refused: {error.details()}")
        if code.name in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND"):
            return Outcome("rejected", detail)
        if code.name == "UNAVAILABLE":  # a fresh channel resolves and connects anew
            self.close()
        return Outcome("retry", detail)

    def _channel(self, endpoint: str) -> Any:
        if endpoint not in self._channels:
            grpc, settings = self._grpc, self._settings
            url = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
            target = url.netloc
            options = [("grpc.max_send_message_length", 64 << 20)]
            plain = url.scheme == "http" or (not url.scheme and settings.insecure)
            if plain:
                channel = grpc.insecure_channel(target, options)
            else:
                credentials = grpc.ssl_channel_credentials(
                    *(
                        _read(path)
                        for path in (
                            settings.certificate,
                            settings.client_key,
                            settings.client_certificate,
                        )
                    )
                )
                channel = grpc.secure_channel(target, credentials, options)
            self._channels[endpoint] = channel
        return self._channels[endpoint]

    def close(self) -> None:
        """Drop the channels."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()

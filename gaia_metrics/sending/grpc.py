"""OTLP over gRPC; needs the `metrics` extra."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from gaia.extras import install
from gaia_metrics.errors import MetricsError
from gaia_metrics.sending.outcome import NO_ENDPOINT, Outcome, accepted
from gaia_metrics.sending.settings import ExportSettings

_SERVICE = "/opentelemetry.proto.collector.{0}.v1.{1}Service/Export"
GRPC_METHODS = {
    b"m": _SERVICE.format("metrics", "Metrics"),
    b"l": _SERVICE.format("logs", "Logs"),
}


class GrpcTransport:
    """OTLP/gRPC; one channel for all signals."""

    def __init__(self, settings: ExportSettings) -> None:
        try:
            import grpc  # pyright: ignore
        except ImportError as error:
            raise MetricsError(
                "OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs grpcio, which is not installed",
                f"{install('metrics')}, or use http/protobuf",
            ) from error
        self._grpc: Any = grpc
        self._settings = settings
        self._channels: dict[str, Any] = {}

    def send(self, signal: bytes, request: bytes) -> Outcome:
        """Call Export once."""
        if signal not in self._settings.endpoints:  # left by an attempt with other settings
            return NO_ENDPOINT
        grpc, settings = self._grpc, self._settings
        try:
            call = self._channel(settings.endpoints[signal]).unary_unary(GRPC_METHODS[signal])
            body = call(
                request,
                timeout=settings.timeout_s,
                metadata=tuple(settings.headers.items()),
                compression=grpc.Compression.Gzip if settings.gzip else None,
            )
            return accepted(body)
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
        too_large = code.name == "RESOURCE_EXHAUSTED" and "larger than max" in detail
        if code.name == "INVALID_ARGUMENT" or too_large:
            return Outcome("rejected", detail)
        if code.name in ("UNIMPLEMENTED", "NOT_FOUND"):
            return Outcome("denied", f"{detail}, not from an OTLP receiver")
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

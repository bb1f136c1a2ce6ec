"""The transport that the settings ask for. Both send the spooled bytes as they are."""

from __future__ import annotations

from gaia_metrics.sending.grpc import GrpcTransport
from gaia_metrics.sending.http import HttpTransport
from gaia_metrics.sending.outcome import Transport
from gaia_metrics.sending.settings import ExportSettings


def connect(settings: ExportSettings) -> Transport:
    """The transport for the protocol. Raises MetricsError where grpcio is not installed."""
    if settings.protocol == "grpc":
        return GrpcTransport(settings)
    return HttpTransport(settings)

"""OTLP over HTTP with binary protobuf, on the standard library alone."""

from __future__ import annotations

import email.utils
import gzip
import http.client
import ssl
import time
from urllib.parse import urlsplit

from gaia_metrics.sending.outcome import Outcome, accepted
from gaia_metrics.sending.settings import ExportSettings


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
        return accepted(body)
    detail = f"HTTP {status} {response.reason}"
    if status in (401, 403):
        return Outcome("denied", detail)
    # The specification retries 429, 502, 503 and 504; a plain 500 is tried again too, because
    # sending twice does no harm here and losing a batch does.
    if status == 429 or status >= 500:
        return Outcome("retry", detail, _retry_after(response.getheader("retry-after")))
    return Outcome("rejected", f"{detail}: {body[:200]!r}")


def _retry_after(header: str | None) -> float:
    if not header:
        return 0.0
    if header.isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0

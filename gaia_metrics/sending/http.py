"""OTLP over HTTP with binary protobuf, on the standard library alone."""

from __future__ import annotations

import base64
import email.utils
import gzip
import http.client
import ssl
import time
import urllib.request
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from gaia_metrics.errors import MetricsError
from gaia_metrics.sending.outcome import NO_ENDPOINT, Outcome, accepted
from gaia_metrics.sending.settings import ExportSettings


class HttpTransport:
    """OTLP/HTTP with binary protobuf, over one kept-alive connection per signal."""

    def __init__(self, settings: ExportSettings) -> None:
        """Read the proxies too. Raises MetricsError where one is no address."""
        self._settings = settings
        self._proxies = {signal: _proxy(url) for signal, url in settings.endpoints.items()}
        self._connections: dict[bytes, http.client.HTTPConnection] = {}

    def send(self, signal: bytes, request: bytes) -> Outcome:
        """POST one request."""
        if signal not in self._settings.endpoints:  # left by an attempt with other settings
            return NO_ENDPOINT
        settings = self._settings
        headers = {"content-type": "application/x-protobuf", **settings.headers}
        url = urlsplit(settings.endpoints[signal])
        if url.scheme == "http" and (proxy := self._proxies[signal]) is not None:
            headers |= _authorization(proxy)
        if settings.gzip:
            request = gzip.compress(request, compresslevel=1, mtime=0)
            headers["content-encoding"] = "gzip"
        try:
            connection, target = self._connection(signal)
            connection.request("POST", target, request, headers)
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

    def _connection(self, signal: bytes) -> tuple[http.client.HTTPConnection, str]:
        """The open connection and the request's target (a whole URL for a plain proxy)."""
        settings, url = self._settings, urlsplit(self._settings.endpoints[signal])
        target = urlunsplit(("", "", url.path or "/", url.query, ""))
        proxy = self._proxies[signal]
        if proxy is not None and url.scheme == "http":
            target = urlunsplit((url.scheme, url.netloc, url.path or "/", url.query, ""))
        connection = self._connections.get(signal)
        if connection is not None:
            return connection, target
        through = proxy or url
        host, timeout = through.hostname or "", settings.timeout_s
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=settings.certificate)
            if settings.client_certificate:
                context.load_cert_chain(settings.client_certificate, settings.client_key)
            connection = http.client.HTTPSConnection(
                host, through.port, timeout=timeout, context=context
            )
            if proxy is not None:
                connection.set_tunnel(url.hostname or "", url.port or 443, _authorization(proxy))
        else:
            connection = http.client.HTTPConnection(host, through.port, timeout=timeout)
        self._connections[signal] = connection
        return connection, target

    def _forget(self, signal: bytes) -> None:
        connection = self._connections.pop(signal, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Drop the connections."""
        for signal in list(self._connections):
            self._forget(signal)


def _proxy(endpoint: str) -> SplitResult | None:
    """Return the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, unless NO_PROXY names the host."""
    url, proxies = urlsplit(endpoint), urllib.request.getproxies_environment()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(url.hostname or ""):
        return None
    try:
        proxy = urlsplit(address if "://" in address else f"http://{address}")
        host, _ = proxy.hostname, proxy.port  # the port is read here, and may raise
        if host:
            return proxy
    except ValueError:
        pass
    name = f"{url.scheme.upper()}_PROXY" if proxies.get(url.scheme) else "ALL_PROXY"
    raise MetricsError(  # without the address: it may hold a password
        f"{name} is no address", "set it to http://HOST:PORT, or the receiver's host in NO_PROXY"
    )


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _http_outcome(response: http.client.HTTPResponse, body: bytes) -> Outcome:
    status = response.status
    if 200 <= status < 300:
        return accepted(body if status == 200 else b"")
    detail = f"HTTP {status} {response.reason}"
    if status in (401, 403):
        return Outcome("denied", detail)
    # The specification retries 429, 502, 503 and 504; a plain 500 is tried again too, because
    # sending twice does no harm here and losing a batch does.
    if status in (408, 429) or status >= 500:
        return Outcome("retry", detail, _retry_after(response.getheader("retry-after")))
    # An OTLP receiver answers with a Status message in the request's encoding. Any other answer
    # comes from something else (a proxy, a TLS port, a wrong path): no batch would fare better.
    kind = (response.getheader("content-type") or "").split(";")[0].strip()
    if status == 413 or kind in ("application/x-protobuf", "application/json"):
        return Outcome("rejected", f"{detail}: {body[:200]!r}")
    return Outcome("denied", f"{detail}: {body[:100]!r}, not from an OTLP receiver")


def _retry_after(header: str | None) -> float:
    if not header:
        return 0.0
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0

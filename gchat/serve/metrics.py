"""Counts and times of the server, as Prometheus reads them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The numbers of one server.

    Attributes:
        requests: answered, by endpoint and HTTP status.
        seconds: that requests took, by endpoint.
        first_token: seconds from a request to its first token.
        tokens: by model and kind: "prompt", "cached", "completion".
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self.requests = Counter(
            "gchat_requests", "Requests answered", ("endpoint", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "gchat_request_seconds", "Time a request took", ("endpoint",), buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "gchat_first_token_seconds", "Time from a request to its first token",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.tokens = Counter(
            "gchat_tokens", "Tokens read and written", ("model", "kind"), registry=self._registry
        )

    def watch(self, name: str, about: str, read: Callable[[], float], **labels: str) -> None:
        """Adds a number that is read when somebody asks."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(name, about, tuple(labels), registry=self._registry)
            self._gauges[name] = gauge
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._registry)

"""OpenTelemetry instruments that record into a run.

`log` is for values of a step; this is for code that is instrumented with the OpenTelemetry API
already (counters with attributes, gauges, histograms). The SDK aggregates between two readings, so
it knows no step: see the README for figures.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gaia.extras import install
from gaia_metrics.errors import MetricsError


class SdkMetrics:
    """Makes the MeterProvider when it is first asked for, and reads its instruments.

    Args:
        resource: OpenTelemetry resource attributes.
    """

    def __init__(self, resource: dict[str, Any]) -> None:
        self._resource = resource
        self._provider: Any = None
        self._reader: Any = None
        self._lock = threading.Lock()

    @property
    def meter_provider(self) -> Any:
        """The provider. Raises MetricsError without the `metrics` extra."""
        with self._lock:
            if self._provider is None:
                try:
                    self._build()
                except ImportError as error:
                    raise MetricsError(
                        f"meter_provider needs {error.name}, which is not installed",
                        install("metrics"),
                    ) from error
            return self._provider

    def _build(self) -> None:
        load: Callable[[str], Any] = importlib.import_module  # an extra: absent in a base install
        sdk = load("opentelemetry.sdk.metrics")
        view = load("opentelemetry.sdk.metrics.view")
        self._reader = sdk.export.InMemoryMetricReader(
            # What was recorded since the last reading; exponential buckets, as run.histogram's.
            preferred_temporality={sdk.Histogram: sdk.export.AggregationTemporality.DELTA},
            preferred_aggregation={sdk.Histogram: view.ExponentialBucketHistogramAggregation(80)},
        )
        self._provider = sdk.MeterProvider(
            [self._reader],
            resource=load("opentelemetry.sdk.resources").Resource.create(self._resource),
            shutdown_on_exit=False,
        )

    def read(self) -> tuple[dict[str, float], list[dict]]:
        """Read every instrument: values by name, and histogram records as histogram.py makes them.

        The names carry the attributes: two series of one instrument stay two.
        """
        data = self._reader.get_metrics_data() if self._reader is not None else None
        values: dict[str, float] = {}
        histograms: list[dict] = []
        for name, point in _points(data):
            if hasattr(point, "value"):
                values[name] = float(point.value)
            elif point.count:
                histograms.append({"kind": "histogram", "name": name} | _summary(point))
        return values, histograms


def _points(data: Any) -> Iterator[tuple[str, Any]]:
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield series_name(metric.name, point.attributes or {}), point


def series_name(name: str, attributes: Mapping[str, Any]) -> str:
    """Name one series of an instrument: `requests{method=GET,route=/a}`, keys in order."""
    pairs = ",".join(f"{key}={attributes[key]}" for key in sorted(attributes))
    return f"{name}{{{pairs}}}" if pairs else name


def _summary(point: Any) -> dict:
    """Turn an ExponentialHistogramDataPoint into a record's fields."""
    return {
        "count": point.count,
        "nonfinite": 0,
        "sum": float(point.sum),
        "min": float(point.min),
        "max": float(point.max),
        "scale": point.scale,
        "zero_count": point.zero_count,
        "positive": (point.positive.offset, list(point.positive.bucket_counts)),
        "negative": (point.negative.offset, list(point.negative.bucket_counts)),
    }

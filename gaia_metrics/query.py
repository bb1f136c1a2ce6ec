"""Runs as pandas frames for notebooks: the same calls on folders, buckets, machines, databases.

from gaia_metrics import query
source = query.connect("runs")                      # or gs://bucket/runs, ssh://node/path,
source = query.connect("clickhouse://localhost:8123")  # clickhouses:// for TLS
query.runs(source)
query.series(source, ["d12", "d20"], ["train/loss"], x="tokens", points=1000)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gaia.extras import install
from gaia_metrics.errors import MetricsError

if TYPE_CHECKING:
    import pandas as pd


class Source(Protocol):
    """A place that runs are read from; LocalSource documents each call's result."""

    def runs(self) -> list[dict]:
        """Summaries, newest first."""
        ...

    def config(self, run: str) -> dict:
        """The run's config."""
        ...

    def metrics(self, run: str) -> list[dict]:
        """Metric names with count, last, min, max."""
        ...

    def metric_names(self, run: str) -> list[str]:
        """Names of the training metrics."""
        ...

    def details(self, run: str) -> dict:
        """Facts of a run: id, name, config, git, versions, attempts."""
        ...

    def histograms(self, run: str) -> list[dict]:
        """Histogram records, oldest first."""
        ...

    def series(
        self, runs: Sequence[str], metrics: Sequence[str], x: str = "step", points: int = 0
    ) -> dict[str, Any]:
        """Columns run, metric, x, value, low, high, step."""
        ...

    def system(self, run: str, points: int = 500) -> dict[str, Any]:
        """Columns metric, x, value."""
        ...

    def texts(self, run: str, kind: str = "text") -> list[dict]:
        """Texts or alerts."""
        ...

    def delete(self, run: str) -> str:
        """Delete a run; returns what was deleted."""
        ...


def connect(where: str | Path) -> Source:
    """Open a folder, gs://…, ssh://…, clickhouse://… or clickhouses://… (TLS).

    Raises MetricsError where the folder does not exist or an extra is missing.
    """
    text = str(where)
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("clickhouse", "clickhouses"):
        from gaia_metrics.reading.clickhouse import ClickHouseSource

        return ClickHouseSource(f"{'https' if scheme == 'clickhouses' else 'http'}://{rest}")
    try:
        from gaia_metrics.reading.local import LocalSource
    except ImportError as error:
        raise MetricsError(
            f"reading runs needs {error.name}, which is not installed", install("ui")
        ) from error
    if separator:
        from gaia_metrics.reading.remote import RemoteSource

        return RemoteSource(text)
    if not Path(text).is_dir():
        raise MetricsError(f"{text} is no folder", "give the folder that holds the runs")
    return LocalSource(Path(text))


def runs(source: Source) -> pd.DataFrame:
    """One row per run, newest first."""
    return _frame(source.runs())


def metrics(source: Source, run: str) -> pd.DataFrame:
    """One row per metric of a run: count, last, last_step, min, max."""
    return _frame(source.metrics(run))


def series(
    source: Source,
    runs: Sequence[str],
    metrics: Sequence[str],
    x: str = "step",
    points: int = 0,
) -> pd.DataFrame:
    """Values in long form: run, metric, x, value, low, high, step."""
    return _frame(source.series(runs, metrics, x, points))


def system(source: Source, run: str, points: int = 500) -> pd.DataFrame:
    """System values: metric, x in seconds, value."""
    return _frame(source.system(run, points))


def texts(source: Source, run: str) -> pd.DataFrame:
    """The run's texts (samples), oldest first."""
    return _frame(source.texts(run))


def compare(source: Source, runs: Sequence[str]) -> pd.DataFrame:
    """Last values and differing config fields: one row per run."""
    return _frame(comparison(source, runs)).set_index("run")


def comparison(source: Source, runs: Sequence[str]) -> list[dict]:
    """Return the rows of `compare` as records: `config.*` only where the runs differ."""
    from gaia_metrics.config import flatten

    configs = [flatten(source.config(run)) for run in runs]
    keys = sorted({key for config in configs for key in config})
    differing = [k for k in keys if len({c.get(k) for c in configs}) > 1]
    rows = []
    for run, config in zip(runs, configs, strict=True):
        row = {"run": run} | {f"config.{k}": config.get(k) for k in differing}
        rows.append(row | {m["metric"]: m["last"] for m in source.metrics(run)})
    return rows


def _frame(data: Any) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        raise MetricsError("pandas is not installed", install("ui")) from error
    return pd.DataFrame(data)

"""Metrics that never slow or stop training: `init`, `Run.log`, and queries over what was logged.

Importing this package loads the standard library only; OpenTelemetry, DuckDB and pandas are
loaded where they are used (extras `metrics` and `ui`).
"""

from gaia_metrics.errors import MetricsError
from gaia_metrics.grafana import dashboard_url
from gaia_metrics.recording.mirror import check_sinks
from gaia_metrics.recording.run import Run, init
from gaia_metrics.storage.folder import run_info

__all__ = ["MetricsError", "Run", "check_sinks", "dashboard_url", "init", "run_info"]

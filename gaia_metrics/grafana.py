"""Links to the dashboards of deploy/grafana."""

import os


def dashboard_url(run_id: str) -> str:
    """Return the link to a run's Grafana dashboard; "" where GAIA_GRAFANA_URL is not set."""
    base = os.environ.get("GAIA_GRAFANA_URL", "").rstrip("/")
    return f"{base}/d/gaia-run?var-run_id={run_id}" if base and run_id else ""

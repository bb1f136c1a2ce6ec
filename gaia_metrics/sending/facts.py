"""A run's facts as OTLP attributes: the resource of its points, and the info metric.

The database makes its `runs` and `attempts` tables from the info metric (deploy/clickhouse).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gaia_metrics.config import flatten, redact
from gaia_metrics.sending.wire import Scalar


def resource(run: Mapping[str, Any], attempt: Mapping[str, Any], process: int) -> dict[str, Scalar]:
    """Resource attributes of every point of one process of one attempt."""
    return {
        "service.name": "gaia",
        "gaia.run.id": run["id"],
        "gaia.run.attempt": str(attempt["attempt"]),
        "gaia.process.index": str(process),
        "host.name": attempt["host"],
        "process.pid": attempt["pid"],
        "vcs.ref.head.revision": run.get("git", {}).get("commit", ""),
    }


def info(
    run: Mapping[str, Any], attempt: Mapping[str, Any], status: str, last_step: int
) -> dict[str, Scalar]:
    """Attributes of gaia.run.info: name, project, status, config, git state, versions."""
    git = run.get("git", {})
    values: dict[str, Scalar] = {
        "gaia.project": run["project"],
        "gaia.run.name": run["name"],
        "gaia.run.status": status,
        "gaia.run.resume_step": str(attempt["resume_step"]),
        "gaia.run.started": f"{attempt['started']:.3f}",
        "gaia.run.last_step": str(last_step),
        "vcs.ref.head.revision": git.get("commit", ""),
        "vcs.ref.head.name": git.get("branch", ""),
        "gaia.git.dirty": git.get("dirty", ""),
    }
    values |= {f"config.{k}": v for k, v in flatten(redact(run.get("config", {}))).items()}
    return values | {f"version.{k}": v for k, v in run.get("versions", {}).items()}

"""The environment that a job finds on its machine."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from gml.config import Config
from gml.errors import UsageError
from gml.model import Node


def job_environment(config: Config, node: Node, extra: Mapping[str, str]) -> dict[str, str]:
    """Variables of a job: deadline, price, metrics, compile cache. Values may be secrets.

    GAIA_DEADLINE is unix seconds, GAIA_PRICE_PER_HOUR US dollars per hour for the whole node.
    """
    env: dict[str, str] = {"GAIA_NODE": node.id}
    if node.deadline is not None:
        env["GAIA_DEADLINE"] = str(node.deadline)
    if node.price is not None:
        env["GAIA_PRICE_PER_HOUR"] = f"{node.price:.4f}"
    if config.metrics.endpoint:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = config.metrics.endpoint
        token = metrics_token(config)
        if token:
            env["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=" + urllib.parse.quote(
                f"Bearer {token}"
            )
    if config.google.bucket and node.provider == "google":
        env["GAIA_BUCKET"] = f"gs://{config.google.bucket}"
        env["JAX_COMPILATION_CACHE_DIR"] = f"gs://{config.google.bucket}/gaia/compile-cache"
    return {**env, **extra}


def metrics_token(config: Config) -> str:
    """The token from the 0600 file, or ''; raises UsageError when others may read it."""
    if not config.metrics.token_file:
        return os.environ.get("GML_METRICS_TOKEN", "")
    path = Path(config.metrics.token_file).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(
                f"metrics.token_file {path} is readable by others", f"chmod 600 {path}"
            )
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UsageError(f"metrics.token_file {path} does not exist", "create it, 0600") from None

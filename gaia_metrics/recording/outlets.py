"""The ways out of a run beside its folder: a receiver, mirrors, notices to people.

http.client, ssl and the like take 0.3 s to import on a slow core, so they are imported here, where
an address is set. A setting that cannot work is one warning; the run is recorded all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gaia_metrics.errors import MetricsError
from gaia_metrics.grafana import dashboard_url
from gaia_metrics.recording.opening import Opened
from gaia_metrics.sending import facts

if TYPE_CHECKING:
    from gaia_metrics.recording.mirror import Mirror
    from gaia_metrics.recording.notices import Notices
    from gaia_metrics.sending.exporter import Exporter
    from gaia_metrics.sending.settings import ExportSettings

Warn = Callable[[str, str, str], None]


def export_settings(warn: Warn) -> ExportSettings | None:
    """Read OTEL_EXPORTER_OTLP_*; None where nothing is sent."""
    if not any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ):
        return None
    from gaia_metrics.sending.settings import ExportSettings

    try:
        return ExportSettings.from_env(os.environ)
    except MetricsError as error:
        warn("settings", f"{error.problem}: recording locally only", error.remedy)
        return None


def exporter(
    settings: ExportSettings | None, opened: Opened, attempt: dict, process: int, warn: Warn
) -> Exporter | None:
    """Start sending to the receiver of the settings; None without one or without a spool."""
    if settings is None:
        return None
    from gaia_metrics.sending.exporter import Exporter

    try:
        resource = facts.resource(opened.info, attempt, process)
        return Exporter(opened.dir / "metrics" / "spool", process, resource, settings, warn)
    except OSError as error:
        warn(
            "spool-disk",
            f"the spool cannot be written ({error}): nothing is sent",
            "make the run folder writable, then `gaia-metrics sync`",
        )
        return None


def mirrors(names: Sequence[str], opened: Opened, process: int, warn: Warn) -> list[Mirror]:
    """Open the sinks of process 0; one that cannot be opened is one warning, and left out."""
    if not names or process != 0 or opened.writer is None:
        return []
    from gaia_metrics.recording.mirror import Mirror, open_target

    opens = []
    for name in names:
        try:
            opens.append(Mirror(name, open_target(name, opened), warn))
        except (Exception, SystemExit) as error:  # whatever another program comes up with
            detail = " ".join(str(error).split())[:200]
            warn(
                f"sink-{name}",
                f"the mirror for {name} cannot be opened ({type(error).__name__}: {detail})",
                "the run folder has everything",
            )
    return opens


def notices(opened: Opened, host: str, warn: Warn) -> Notices | None:
    """Start telling the people of GAIA_NOTIFY; None where it is not set."""
    if not os.environ.get("GAIA_NOTIFY"):
        return None
    from gaia_metrics.recording.notices import Notices, addresses

    try:
        targets = addresses(os.environ)
    except MetricsError as error:
        warn("notify", f"{error.problem}: nobody is told", error.remedy)
        return None
    info = opened.info
    known = {"run": info["id"], "name": info["name"], "project": info["project"], "host": host}
    return Notices(targets, known | {"url": dashboard_url(info["id"])}, warn)

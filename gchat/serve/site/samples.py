"""Numbers of the running site: now, and every few seconds for charts.

They are kept in the database, so that charts survive a restart and `gchat web admin` reads them.
"""

import asyncio
import os
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import sqlalchemy as sa

from gchat.serve.site.clock import now
from gchat.serve.site.site import Site
from gchat.serve.site.tables import samples

INTERVAL_S = 5
_KEPT_S = 86_400
_POINTS = 720
SERIES = (
    "tokens_per_s", "queue", "running", "latency_p50_ms", "latency_p95_ms", "errors"
)  # fmt: skip


async def record(site: Site) -> None:
    """Waits a while and writes what happened meanwhile; also counts of quotas."""
    began, tokens, errors = time.monotonic(), site.answers.tokens, site.answers.errors
    site.recent.clear()
    await asyncio.sleep(INTERVAL_S)
    seconds = time.monotonic() - began
    waits = sorted(site.recent)
    data = {
        "tokens_per_s": round((site.answers.tokens - tokens) / seconds, 2),
        "queue": _waiting(site),
        "running": len(site.answers.running),
        "latency_p50_ms": _quantile(waits, 0.5),
        "latency_p95_ms": _quantile(waits, 0.95),
        "errors": site.answers.errors - errors,
        "status": await asyncio.to_thread(status, site),
    }
    await site.quotas.save()
    await site.database.write(_save, data)


def _save(c: sa.Connection, data: dict[str, Any]) -> None:
    moment = now()
    c.execute(
        sa.delete(samples).where((samples.c.at == moment) | (samples.c.at < moment - _KEPT_S))
    )
    c.execute(sa.insert(samples).values(at=moment, data=data))


def _quantile(waits: list[float], share: float) -> float | None:
    return round(1000 * waits[min(len(waits) - 1, int(share * len(waits)))], 1) if waits else None


def _waiting(site: Site) -> int:
    return sum(model.queue.waiting for model in site.service.models.values())


def series(c: sa.Connection, minutes: int) -> dict[str, Any]:
    """Numbers of the last minutes, thinned out to what a chart shows."""
    chosen = sa.select(samples).where(samples.c.at > now() - 60 * minutes).order_by(samples.c.at)
    rows = c.execute(chosen).all()
    rows = rows[:: -(-len(rows) // _POINTS) or 1]
    return {
        "interval_s": INTERVAL_S,
        "at": [row.at for row in rows],
        "series": {name: [row.data.get(name) for row in rows] for name in SERIES},
    }


def last(c: sa.Connection) -> dict[str, Any] | None:
    """The newest sample with its time, for programs beside the server."""
    row = c.execute(sa.select(samples).order_by(samples.c.at.desc()).limit(1)).first()
    return None if row is None else {"at": row.at, **row.data}


def status(site: Site) -> dict[str, Any]:
    """State of models, queue and disk now; looks at the disk, so it runs off the event loop."""
    file = site.database.file
    disk: dict[str, Any] = {"used": None, "total": None, "database": None}
    if file is not None:
        whole = shutil.disk_usage(file.parent)
        files = [file, file.with_name(file.name + "-wal")]
        size = sum(os.path.getsize(one) for one in files if one.exists())
        disk = {"used": whole.used, "total": whole.total, "database": size}
    models = [
        {"id": name, "context": site.context_of(model), "state": _state(site, model),
         "waiting": model.queue.waiting, "working": model.queue.working}
        for name, model in site.service.models.items()
    ]  # fmt: skip
    failing = site.journal.failing_since
    return {
        "models": models,
        "queue": _waiting(site),
        "running": len(site.answers.running),
        "errors": site.answers.errors,
        "tokens": site.answers.tokens,
        "disk": disk,
        "unsaved_s": None if failing is None else round(time.monotonic() - failing, 1),
        "version": _version(),
    }


def _state(site: Site, model: Any) -> str:
    if site.service.leaving:
        return "shutting down"
    if hasattr(model, "engine") and not site.service.driver.alive:
        return "the engine has stopped"
    return "ready"


def _version() -> str:
    try:
        return version("gaia-llm")
    except PackageNotFoundError:
        return "unknown"

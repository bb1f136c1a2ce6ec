"""`gml reap`: deletes what is past its deadline or dead, from the clouds' labels alone.

It needs no local state, so it runs from any machine: a laptop, cron, CI, or a Cloud Run job. Each
complete pass leaves a heartbeat (a local file and, with a bucket, an object in it), which `gml node
create` wants to see before it rents a machine that nothing else would end.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

from gml.config import Config
from gml.errors import GmlError
from gml.model import Node
from gml.nodes import Manager
from gml.providers.base import Tick, silent
from gml.store import Store

# An intent younger than this may belong to a create whose node no list shows yet.
SETTLE_S = 600
HEARTBEAT = "reaper.json"


@dataclass
class ReapReport:
    """What a pass found and did. `problems` not empty means that something may be left."""

    deleted: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)
    forgotten: list[Node] = field(default_factory=list)
    foreign: int = 0
    problems: list[str] = field(default_factory=list)


def why(node: Node, now: float) -> str:
    """Why a node has to go, or ''."""
    if node.dead():
        return node.state
    if node.deadline == 0:
        return "no readable deadline"
    return "past its deadline" if node.expired(now) else ""


def reap(
    manager: Manager, *, dry_run: bool = False, all_owners: bool = False, tick: Tick = silent
) -> ReapReport:
    """One pass over all configured clouds.

    Args:
        manager: whose `now` decides what is past.
        dry_run: judge, delete nothing, leave no heartbeat.
        all_owners: also delete other people's expired nodes (for an administrator's cron job).
    """
    now, report = manager.now(), ReapReport()
    alive: set[str] = set()
    complete: set[str] = set()
    for provider in manager.configured():
        tick(f"looking at {provider.name}")
        try:
            found = provider.list_nodes()
            complete.add(provider.name)
        except GmlError as error:
            found = getattr(error, "found", [])
            report.problems.append(f"{provider.name}: {error}")
        for node in found:
            alive.add(node.id)
            if node.owner != manager.config.owner and not all_owners:
                report.foreign += 1
                continue
            reason = why(node, now)
            if not reason:
                report.kept.append(node)
                continue
            node = node.replace(note=reason)
            if not dry_run:
                try:
                    tick(f"deleting {node.id} ({reason})")
                    provider.delete(node)
                    record = manager.store.get(node.id)
                    if record and not manager.store.locked(node.id):
                        manager.store.remove(record, deleted=round(now))
                        manager.ssh.forget(record)
                except GmlError as error:
                    report.problems.append(f"{node.id}: {error}")
                    continue
            report.deleted.append(node)
    _settle_records(manager, report, alive, complete, dry_run)
    if not dry_run and not report.problems:
        beat(manager.config, manager.store, now)
    return report


def _settle_records(
    manager: Manager, report: ReapReport, alive: set[str], complete: set[str], dry_run: bool
) -> None:
    """Drops records of nodes that exist nowhere any more, once no list can be lagging behind."""
    now = manager.now()
    for record in manager.store.all():
        if record.id in alive or record.provider not in complete:
            continue
        if manager.store.locked(record.id) or now - record.created < SETTLE_S:
            continue
        if not dry_run:
            provider = manager.provider(record.provider)
            try:
                if provider.find(record) is not None:
                    continue
            except GmlError as error:
                report.problems.append(f"{record.id}: {error}")
                continue
            manager.store.remove(record, deleted=min(round(now), record.deadline or round(now)))
            manager.ssh.forget(record)
        report.forgotten.append(record)


def beat(config: Config, store: Store, now: float) -> None:
    """Leaves the heartbeat of a complete pass."""
    value = {"at": round(now), "host": socket.gethostname(), "owner": config.owner}
    store.write_json(HEARTBEAT, value)
    if config.google.bucket:
        from gml.providers.google_api import GoogleApi

        try:
            GoogleApi(config).upload(config.google.bucket, f"gml/{HEARTBEAT}", value)
        except GmlError:
            # The bucket's copy is for other machines; the pass itself was complete.
            return


def heartbeat_age(config: Config, now: float | None = None) -> float | None:
    """Seconds since the last complete pass anywhere that we can see, or None."""
    now = time.time() if now is None else now
    times = [Store(config.home).read_json(HEARTBEAT).get("at")]
    if config.google.bucket:
        from gml.providers.google_api import GoogleApi

        try:
            found = GoogleApi(config).download(config.google.bucket, f"gml/{HEARTBEAT}")
            times.append(found.get("at"))
        except (GmlError, AttributeError):
            times.append(None)
    ages = [now - t for t in times if isinstance(t, (int, float)) and t <= now + 60]
    return max(0.0, min(ages)) if ages else None

"""`gml reap`: deletes what is past its deadline or dead, from the clouds' labels alone.

It needs no local state, so it runs from any machine: a laptop, cron, CI, or a Cloud Run job. For
each provider that a pass could wholly look at it leaves a heartbeat (a local file and, with a
bucket, an object in it), which `gml node create` wants to see before it rents a machine that
nothing else would end. A reaper without Lambda's key is none for Lambda's machines, nor is a
colleague's.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
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
# Owner in the heartbeat of a pass over everybody's machines; no owner can be called so.
EVERYBODY = "_all"


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
    configured = manager.configured()
    report.problems += manager.out_of_sight(configured)
    for provider in configured:
        tick(f"asking {provider.name}")
        try:
            found = provider.list_nodes()
            complete.add(provider.name)
        except Exception as error:
            # Whatever is wrong with one cloud, the others' machines still have to go.
            found = getattr(error, "found", [])
            report.problems.append(f"{provider.name}: {_text(error)}")
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
                except Exception as error:
                    report.problems.append(f"{node.id}: {_text(error)}")
                    complete.discard(provider.name)
                    continue
            report.deleted.append(node)
    _settle_records(manager, report, alive, complete, dry_run)
    if not dry_run:
        beat(manager.config, manager.store, now, sorted(complete), everybody=all_owners)
    return report


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, GmlError) else f"{type(error).__name__}: {error}"


def _settle_records(
    manager: Manager, report: ReapReport, alive: set[str], complete: set[str], dry_run: bool
) -> None:
    """Drops records of nodes that exist nowhere any more, once no list can be lagging behind."""
    now = manager.now()
    if not report.problems and not dry_run:
        # Whatever still exists of them has been seen by now: under the owner's eyes, or deleted.
        for node_id in manager.store.damaged(SETTLE_S):
            manager.store.clear_damaged(node_id)
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


def beat(
    config: Config, store: Store, now: float, providers: Sequence[str], *, everybody: bool = False
) -> None:
    """Leaves the heartbeat of a pass over these providers."""
    owner = EVERYBODY if everybody else config.owner
    value = {"at": round(now), "host": socket.gethostname(), "owner": owner}
    store.write_json(HEARTBEAT, {**store.read_json(HEARTBEAT), **dict.fromkeys(providers, value)})
    if not config.google.bucket:
        return
    from gml.providers.google_api import GoogleApi

    # The bucket's copy is for other machines; the pass itself was complete without it.
    with contextlib.suppress(GmlError):
        api = GoogleApi(config)
        for provider in providers:
            api.upload(config.google.bucket, _object(owner, provider), value)


def _object(owner: str, provider: str) -> str:
    return f"gml/reaper/{owner}/{provider}.json"


def heartbeat_age(config: Config, provider: str, now: float | None = None) -> float | None:
    """Seconds since the last pass over this provider for this owner that we can see, or None."""
    now = time.time() if now is None else now
    owners = (config.owner, EVERYBODY)
    beats = [Store(config.home).read_json(HEARTBEAT).get(provider)]
    if config.google.bucket:
        from gml.providers.google_api import GoogleApi

        with contextlib.suppress(GmlError):
            api = GoogleApi(config)
            beats += [api.download(config.google.bucket, _object(o, provider)) for o in owners]
    found = [b for b in beats if isinstance(b, dict) and b.get("owner") in owners]
    times = [b.get("at") for b in found]
    ages = [now - t for t in times if isinstance(t, (int, float)) and t <= now + 60]
    return max(0.0, min(ages)) if ages else None

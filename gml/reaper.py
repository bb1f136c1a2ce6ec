"""`gml reap`: deletes what is past its deadline or dead, from the clouds' labels alone.

It needs no local state, so it runs from any machine: a laptop, cron, CI, or a Cloud Run job. For
each provider that a pass could wholly look at it leaves a heartbeat (a local file and, with a
bucket, an object in it), which `gml node create` wants to see before it rents a machine that
nothing else would end. A reaper without Lambda's key is none for Lambda's machines, nor is a
colleague's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from gml import budget
from gml.doubts import Doubts
from gml.errors import Busy, GmlError, Incomplete
from gml.fleet import Fleet, priced
from gml.heartbeat import beat
from gml.model import Node
from gml.nodes.ending import ended_at
from gml.progress import Progress, silent, unbreakable
from gml.providers.base import Provider

# An intent younger than this may belong to a create whose node no list shows yet.
SETTLE_S = 600
# Phases of a record whose create or delete has not come to its end, and what that is called.
BEGUN = {"intent": "create", "deleting": "deletion"}


@dataclass
class ReapReport:
    """Results of a pass. If `problems` is not empty, something may be left."""

    deleted: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)
    forgotten: list[Node] = field(default_factory=list)
    foreign: int = 0
    problems: list[str] = field(default_factory=list)


def why(node: Node, now: float) -> str:
    """Reason for which a node has to go, or ''."""
    if node.dead():
        return node.state
    if node.deadline == 0:
        return "no readable deadline"
    return "past its deadline" if node.expired(now) else ""


def reap(
    fleet: Fleet, *, dry_run: bool = False, all_owners: bool = False, progress: Progress = silent
) -> ReapReport:
    """One pass over all configured clouds.

    Args:
        fleet: whose `now` decides what is past.
        dry_run: judge, delete nothing, leave no heartbeat.
        all_owners: also delete other people's expired nodes (for an administrator's cron job).
    """
    report, tell = ReapReport(), unbreakable(progress)
    records = {r.id: r for r in fleet.store.all()}
    alive: set[str] = set()
    complete: set[str] = set()
    configured = fleet.configured()
    report.problems += fleet.out_of_sight(configured)
    doubts = Doubts(fleet, dry_run=dry_run)
    for provider in configured:
        tell(f"asking {provider.name}")
        nodes, problem = _listed(provider)
        if problem:
            report.problems.append(problem)
        else:
            complete.add(provider.name)
        now = fleet.now()  # by the service's clock, now that it has answered
        nodes += _unlisted(fleet, provider, records, nodes, report, whole=not problem)
        for node in nodes:
            alive.add(node.id)
            if node.owner != fleet.config.owner and not all_owners:
                report.foreign += 1
                continue
            record = records.get(node.id)
            if record and not record.holds(node):
                record = None  # another machine of the same name
            with contextlib.ExitStack() as held:
                late = why(node, now)
                half = "" if late else _interrupted(fleet, record, held)
                reason = late or half or doubts.reason(node, record)
                if not reason:
                    report.kept.append(node)
                    continue
                node = node.replace(note=reason)
                tell(f"deleting {node.id} ({reason})")
                if dry_run or _delete(fleet, provider, node, report, held=bool(half)):
                    report.deleted.append(node)
                else:
                    complete.discard(provider.name)
    report.problems += doubts.keep()
    _obey_budget(fleet, report, tell, dry_run)
    _settle_records(fleet, report, alive, complete, dry_run)
    if not dry_run:
        try:
            beat(fleet.config, fleet.store, fleet.now(), sorted(complete), everybody=all_owners)
        except OSError as error:
            report.problems.append(f"no heartbeat could be left: {error}")
    return report


def _listed(provider: Provider) -> tuple[list[Node], str]:
    """All machines that a cloud shows, and why that may not be all ('': it is).

    Whatever is wrong with one place, the machines in the others still have to go.
    """
    try:
        return provider.list_nodes(), ""
    except Incomplete as error:
        return list(error.seen), f"{provider.name}: {error}"
    except Exception as error:
        return [], f"{provider.name}: {_text(error)}"


def _obey_budget(fleet: Fleet, report: ReapReport, tell: Progress, dry_run: bool) -> None:
    """Deletes all that costs money once the month's budget is spent, and shares what was seen."""
    ours = [priced(n) for n in report.kept if n.owner == fleet.config.owner]
    try:
        if not dry_run:
            budget.share_spending(fleet, ours)
        money = budget.month(fleet, ours)
    except (GmlError, OSError) as error:
        report.problems.append(f"the month's budget can't be read: {_text(error)}")
        return
    if money.problem:
        report.problems.append(f"the month's budget can't be read: {money.problem}")
        return
    if money.limit is None or money.spent < money.limit:
        return
    for node in [n for n in ours if n.price != 0]:
        over = f"the month's budget of ${money.limit:.2f} is spent"
        tell(f"deleting {node.id} ({over})")
        provider = fleet.provider(node.provider)
        if dry_run or _delete(fleet, provider, node, report):
            report.kept = [n for n in report.kept if (n.id, n.owner) != (node.id, node.owner)]
            report.deleted.append(node.replace(note=over))


def _interrupted(fleet: Fleet, record: Node | None, held: contextlib.ExitStack) -> str:
    """Reason to end what a create or delete on this machine left when it was killed, or ''.

    With a reason `held` keeps the node's lock, so that no create takes the machine over while it
    goes.
    """
    if record is None or record.phase not in BEGUN:
        return ""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(fleet.store.lock(record.id, needs_disk=False))
        except Busy:
            return ""  # it is still at work
        # Only what the record says under the lock counts: since this pass began, a create that was
        # under way may have come to its end, and its machine works.
        now = fleet.store.get(record.id)
        if now is None or now.phase not in BEGUN:
            return ""
        held.push(stack.pop_all())
    return f"its {BEGUN[now.phase]} was interrupted"


def _unlisted(
    fleet: Fleet,
    provider: Provider,
    records: dict[str, Node],
    listed: list[Node],
    report: ReapReport,
    *,
    whole: bool,
) -> list[Node]:
    """Looks up by name what our records know and the list does not show.

    Left by interrupted creates, for the list lags; and, where the list is whole, machines in
    another project than the current one.
    """
    nodes = []
    for record in records.values():
        if record.provider != provider.name or any(map(record.holds, listed)):
            continue
        with contextlib.ExitStack() as held:
            half = bool(record.tried) and bool(_interrupted(fleet, record, held))
            settled = whole and record.phase == "up" and not fleet.store.locked(record.id)
            if not half and not settled:
                continue
            try:
                nodes += [n for n in (provider.find(record),) if n]
            except Exception as error:
                report.problems.append(f"{record.id}: {_text(error)}")
    return nodes


def _delete(
    fleet: Fleet, provider: Provider, node: Node, report: ReapReport, held: bool = False
) -> bool:
    """Deletes a node and its record; False, with the problem noted, when it may still exist.

    The record stays while somebody else works on the node; `held`: the lock is our own.
    """
    try:
        provider.delete(node)
    except Exception as error:
        report.problems.append(f"{node.id}: {_text(error)}")
        return False
    record = fleet.store.get(node.id)
    if record and record.holds(node) and (held or not fleet.store.locked(node.id)):
        with contextlib.suppress(OSError):
            fleet.store.remove(record, deleted=round(fleet.now()))
            fleet.ssh.forget(record)
    return True


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, GmlError) else f"{type(error).__name__}: {error}"


def _settle_records(
    fleet: Fleet, report: ReapReport, alive: set[str], complete: set[str], dry_run: bool
) -> None:
    """Drops records of nodes that exist nowhere any more, once no list can be lagging behind."""
    now = fleet.now()
    if not report.problems and not dry_run:
        # Whatever still exists of them has been seen by now: under the owner's eyes, or deleted.
        for node_id in fleet.store.damaged(SETTLE_S):
            fleet.store.clear_damaged(node_id)
    for record in fleet.store.all():
        if record.id in alive or record.provider not in complete:
            continue
        if fleet.store.locked(record.id) or now - record.created < SETTLE_S:
            continue
        if not dry_run:
            provider = fleet.provider(record.provider)
            try:
                if provider.find(record) is not None:
                    continue
            except GmlError as error:
                if (line := f"{record.id}: {error}") not in report.problems:
                    report.problems.append(line)
                continue
            with contextlib.suppress(OSError):
                fleet.store.remove(record, deleted=ended_at(fleet, record))
                fleet.ssh.forget(record)
        report.forgotten.append(record)

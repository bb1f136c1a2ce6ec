"""`gml node …`: create, list, show, extend, delete, list-types, timeout."""

from __future__ import annotations

from typing import Annotated

import typer

from gml import cli_common as c
from gml.durations import format_duration, parse_timeout
from gml.errors import GmlError, Incomplete, UsageError
from gml.fleet import clock
from gml.listing import NOTES, row
from gml.model import Node
from gml.ssh import address_of
from gml.ui import Progress, confirm, emit, say, table


def add(app: typer.Typer) -> None:
    """Registers `gml node`."""
    node = typer.Typer(help="Make, look at and end machines.", no_args_is_help=True)
    node.command()(create)
    node.command("list")(list_)
    node.command()(show)
    node.command()(extend)
    node.command()(delete)
    node.command("list-types")(list_types)
    timeout = typer.Typer(help="Change when a node ends.", no_args_is_help=True)
    timeout.command("reset")(timeout_reset)
    timeout.command("remove")(timeout_remove)
    node.add_typer(timeout, name="timeout")
    app.add_typer(node, name="node")


def create(
    instance_type: c.Type = "",
    provider: c.Provider = "",
    timeout: c.Timeout = "",
    name: c.Name = "",
    zone: c.Zone = "",
    spot: c.Spot = False,
    max_price: c.MaxPrice = None,
    retry_until_up: c.Retry = False,
    strategy: c.Strategy = "",
    reservation: c.Reservation = "",
    idle: c.Idle = "",
    disk_gb: c.Disk = 100,
    limit: c.Limit = "",
    wait: c.Wait = "1h",
    unsafe: c.Unsafe = False,
    self_terminate: c.SelfTerminate = False,
    host: c.HostList = None,
    no_ssh: c.NoSsh = False,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Make a machine that ends by itself.

    Waits until its shell is usable, and prints its id.
    """
    options = dict(locals())
    for key in ("yes", "dry_run", "json"):
        options.pop(key)
    manager = c.manager()
    wish = c.make_wish(manager, **options)
    if not wish.instance_type:
        raise UsageError("--instance-type is missing", "see `gml node list-types`")
    if dry_run:
        spec, offer, requests = manager.plan(wish)
        emit({"id": spec.id, "offer": offer, "requests": requests})
        return
    with Progress() as progress:
        manager.on_up = progress.bill
        node = manager.create(wish, progress)
    if json:
        emit(row(node, manager.now()))
        return
    say(describe_created(node, wish.timeout_s))
    print(node.id)


def describe_created(node: Node, timeout_s: int) -> str:
    """What the user wants to know at once: price, end, and how to get in."""
    most = "" if node.price is None else f", at most ${node.price * timeout_s / 3600:.2f}"
    price = "price unknown" if node.price is None else f"${node.price:.2f}/h"
    ends = "never" if node.deadline is None else clock(node.deadline)
    who = (
        f"{node.provider} itself deletes it at {clock(node.limit)} at the latest"
        if node.limit
        else "no limit at the provider: the watchdog on the machine and `gml reap` end it"
    )
    return (
        f"gml: {node.id} is up: {node.sku} in {node.zone or address_of(node.hosts[0])} "
        f"({node.strategy}), "
        f"{price}{most}\n"
        f"gml: ends {ends}; {who}\n"
        f"gml: gml connect {node.id}"
    )


def list_(
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the clouds now.")] = False,
    cached: Annotated[bool, typer.Option("--cached", help="Only the last look.")] = False,
    json: c.Json = False,
) -> None:
    """All nodes (the same as `gml ls`)."""
    from gml.cli_look import ls

    ls(refresh=refresh, cached=cached, json=json)


def show(node_id: c.NodeId, json: c.Json = False) -> None:
    """One node, as the cloud sees it now."""
    from gml.fleet import merge

    manager = c.manager()
    record = manager.resolve(node_id)
    live = manager.provider(record.provider).find(record)
    node = merge(record, live) if live else record.replace(note="lost")
    value = row(node, manager.now())
    value["resources"] = list(node.resources)
    value["ssh"] = f"ssh {node.id}"
    if json:
        emit(value)
    else:
        table(_told(node, manager.now()), ("FIELD", "VALUE"))


def _told(node: Node, now: float) -> list[tuple[str, str]]:
    """A node as people read it."""
    left = "" if node.deadline is None else f", in {format_duration(node.deadline - now)}"
    cost = node.cost(now)
    what = [
        ("id", node.id),
        ("type", f"{node.sku}{' (spot)' if node.spot else ''}"),
        ("place", f"{node.provider} {node.zone} ({node.strategy})"),
        ("state", node.state or node.phase),
        ("ends", "never" if node.deadline is None else f"{clock(node.deadline)}{left}"),
        ("ended by", f"{node.provider} at {clock(node.limit)} at the latest" if node.limit
         else f"you: gml node delete {node.id}" if node.deadline is None
         else "the watchdog on the machine, and `gml reap`"),
        ("price", "unknown" if node.price is None else f"${node.price:.2f}/h"),
        ("spent", "unknown" if cost is None else f"${cost:.2f}"),
        *((f"host {i}", address_of(h)) for i, h in enumerate(node.hosts)),
        *(("resource", r) for r in node.resources),
    ]  # fmt: skip
    if node.hosts:
        what.append(("ssh", f"gml connect {node.id}"))
    if node.note:
        what.append(("note", NOTES.get(node.note, node.note)))
    return what


def extend(
    node_id: c.NodeId,
    by: Annotated[str, typer.Argument(help="How much longer: 2h.")],
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Move a node's end to a later time.

    As far as the provider's own limit allows.
    """
    manager = c.manager()
    node = manager.resolve(node_id)
    if node.deadline is None:
        raise UsageError(f"{node.id} has no end to extend", f"`gml node timeout reset {node.id}`")
    _move(node, node.deadline + parse_timeout(by, field="the extension"), dry_run, json)


def timeout_reset(
    node_id: c.NodeId,
    timeout: Annotated[str, typer.Option("--timeout", help="Instead of the original one.")] = "",
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Begin the timeout anew from now."""
    manager = c.manager()
    node = manager.resolve(node_id)
    length = parse_timeout(timeout) if timeout else node.timeout_s
    if not length:
        raise UsageError(f"the original timeout of {node.id} is not known", "say --timeout 3h")
    _move(node, round(manager.now()) + length, dry_run, json)


def timeout_remove(
    node_id: c.NodeId, yes: c.Yes = False, dry_run: c.DryRun = False, json: c.Json = False
) -> None:
    """Let a node run until someone deletes it (the idle limit stays)."""
    node = c.manager().resolve(node_id)
    if not dry_run:
        rate = "" if node.price is None else f" at ${node.price * 24:.0f} a day"
        confirm(f"let {node.id} run without an end{rate}?")
    _move(node, None, dry_run, json)


def _move(node: Node, deadline: int | None, dry_run: bool, json: bool) -> None:
    manager = c.manager()
    if dry_run:
        emit({"id": node.id, "requests": manager.extend_plan(node, deadline)})
        return
    moved = manager.extend(node, deadline)
    if json:
        emit(row(moved, manager.now()))
    elif moved.deadline is None:
        say(f"gml: {moved.id} has no end any more; `gml node delete {moved.id}` ends it")
    else:
        left = format_duration(moved.deadline - manager.now())
        say(f"gml: {moved.id} ends {clock(moved.deadline)}, in {left}")


def delete(
    node_ids: Annotated[list[str], typer.Argument(help="Node ids.", autocompletion=c.node_ids)],
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Delete nodes.

    Waits until the provider no longer knows them.
    """
    manager = c.manager()
    nodes = [manager.resolve(i) for i in dict.fromkeys(node_ids)]
    if dry_run:
        emit([{"id": n.id, "requests": manager.delete_plan(n)} for n in nodes])
        return
    confirm(f"delete {', '.join(n.id for n in nodes)}?", scripts_may=True)
    done, failed = [], []
    with Progress() as progress:
        for node in nodes:
            entry = {"id": node.id, "deleted": True, "spent_usd": node.cost(manager.now())}
            try:
                progress(f"deleting {node.id}")
                manager.delete(node, progress)
            except GmlError as error:
                # The others still have to go.
                failed.append(error)
                entry.update(deleted=False, error=str(error))
            done.append(entry)
    if json and not (failed and len(done) == 1):
        emit(done)
    for item in done if not json else ():
        spent = "" if item["spent_usd"] is None else f", ${item['spent_usd']:.2f} in all"
        if item["deleted"]:
            say(f"gml: {item['id']} is gone{spent}")
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise Incomplete("; ".join(map(str, failed)), "run it again")


def list_types(json: c.Json = False) -> None:
    """All instance types gml knows, with dated list prices."""
    from gaia import hardware

    rows = []
    for sku in hardware.skus().values():
        rows.append(
            {
                "type": sku.name,
                "chip": sku.chip.name,
                "chips": sku.chips,
                "hosts": sku.hosts,
                "topology": sku.topology,
                "hbm_gib": round(sku.hbm_bytes / 2**30),
                "usd_per_hour": sku.price_per_hour(),
                "usd_per_hour_spot": sku.price_per_hour(spot=True),
                "google": sku.gce_machine_type,
                "lambda": sku.lambda_type,
            }
        )
    if json:
        emit({"dated": hardware.dated(), "types": rows})
        return
    money = lambda v: "-" if v is None else f"{v:.2f}"  # noqa: E731
    table(
        [
            (r["type"], r["chip"], r["chips"], r["hosts"], r["hbm_gib"],
             money(r["usd_per_hour"]), money(r["usd_per_hour_spot"]),
             "google" * bool(r["google"]) + " lambda" * bool(r["lambda"]))
            for r in rows
        ],
        ("TYPE", "CHIP", "CHIPS", "HOSTS", "HBM GiB", "$/H", "$/H SPOT", "AT"),
    )  # fmt: skip
    print(f"list prices as of {hardware.dated()}; `gml offers TYPE` has what is live")

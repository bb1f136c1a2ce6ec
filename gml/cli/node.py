"""`gml node …`: create, list, show, extend, delete, list-types, timeout."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from gaia import hardware
from gml.cli import options as c
from gml.cli.listing import NOTES, row
from gml.cli.look import ls
from gml.cli.signature import with_options
from gml.cli.terminal import Spinner, confirm, emit, nobody_reads, say, table
from gml.durations import format_duration, format_time, parse_timeout
from gml.errors import GmlError, Incomplete, UsageError
from gml.fleet import merge
from gml.model import Node
from gml.nodes import change
from gml.nodes.create import create as nodes_create
from gml.planning import plan
from gml.progress import Progress
from gml.remote.ssh import address_of
from gml.request import NodeRequest


def add(app: typer.Typer) -> None:
    """Registers `gml node`."""
    node = typer.Typer(help="Create, inspect and delete nodes.", no_args_is_help=True)
    node.command()(create)
    node.command("list")(list_)
    node.command()(show)
    node.command()(extend)
    node.command()(delete)
    node.command("list-types")(list_types)
    timeout = typer.Typer(help="Change the time at which a node ends.", no_args_is_help=True)
    timeout.command("reset")(timeout_reset)
    timeout.command("remove")(timeout_remove)
    node.add_typer(timeout, name="timeout")
    app.add_typer(node, name="node")


@with_options
def create(
    request: NodeRequest,
    no_ssh: Annotated[bool, typer.Option("--no-ssh", help="Return before a login works.")] = False,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Create a node that ends by itself.

    Waits until a login works, and prints the node's id.
    """
    fleet = c.open_fleet()
    request = c.completed(fleet, request, "see `gml node list-types`")
    request = dataclasses.replace(request, wait_ssh=not no_ssh)
    if dry_run:
        spec, offer, requests = plan(fleet, request)
        emit({"id": spec.id, "offer": offer, "requests": requests})
        return
    with Spinner() as spinner:
        node = nodes_create(fleet, request, _while_read(spinner), spinner.bill)
    try:
        if json:
            emit(row(node, fleet.now()))
            return
        say(describe_created(node, request.timeout_s))
        print(node.id, flush=True)
    except OSError as error:
        # Nobody has learnt its id, so nobody would end it before its deadline.
        change.delete(fleet, node)
        error.add_note(f"the id could not be written: {node.id} was deleted again")
        raise


def _while_read(spinner: Spinner) -> Progress:
    """The spinner's steps, until nobody reads our output: then the create is given up."""

    def tell(step: str) -> None:
        if nobody_reads():
            raise BrokenPipeError("nobody reads the output any more")
        spinner(step)

    return tell


def describe_created(node: Node, timeout_s: int) -> str:
    """Price, end and way in of a node that was just created."""
    most = "" if node.price is None else f", at most ${node.price * timeout_s / 3600:.2f}"
    price = "price unknown" if node.price is None else f"${node.price:.2f}/h"
    ends = "never" if node.deadline is None else format_time(node.deadline)
    who = (
        f"{node.provider} itself deletes it at {format_time(node.limit)} at the latest"
        if node.limit
        else "no limit at the provider: the watchdog on the machine and `gml reap` end it"
    )
    return (
        f"gml: {node.id} is up: {node.sku} in {node.zone or address_of(node.hosts[0])} "
        f"({node.strategy}), "
        f"{price}{most}\n"
        f"gml: ends {ends}; {who}\n"
        f"gml: gml connect {node.id}   (a shell; sends the work tree around you first)"
    )


def list_(
    refresh: c.Refresh = False,
    cached: c.Cached = False,
    json: c.Json = False,
) -> None:
    """List all nodes (the same as `gml ls`)."""
    ls(refresh=refresh, cached=cached, json=json)


def show(node_id: c.NodeId, json: c.Json = False) -> None:
    """Show one node as the cloud sees it now."""
    fleet = c.open_fleet()
    record = fleet.resolve(node_id)
    live = fleet.provider(record.provider).find(record)
    seen = {"seen": round(fleet.now())}
    node = merge(record, live).replace(**seen) if live else record.replace(note="lost")
    value = row(node, fleet.now())
    value["resources"] = list(node.resources)
    value["ssh"] = f"ssh {node.id}"
    if json:
        emit(value)
    else:
        table(_told(node, fleet.now()), ("FIELD", "VALUE"))


def _told(node: Node, now: float) -> list[tuple[str, str]]:
    """A node as people read it."""
    left = "" if node.deadline is None else f", in {format_duration(node.deadline - now)}"
    cost = node.cost(now)
    facts = [
        ("id", node.id),
        ("type", f"{node.sku}{' (spot)' if node.spot else ''}"),
        ("place", f"{node.provider} {node.zone} ({node.strategy})"),
        ("state", node.state or node.phase),
        ("ends", "never" if node.deadline is None else f"{format_time(node.deadline)}{left}"),
        ("ended by", f"{node.provider} at {format_time(node.limit)} at the latest" if node.limit
         else f"you: gml node delete {node.id}" if node.deadline is None
         else "the watchdog on the machine, and `gml reap`"),
        ("price", "unknown" if node.price is None else f"${node.price:.2f}/h"),
        ("spent", "unknown" if cost is None else f"${cost:.2f}"),
        *((f"host {i}", address_of(h)) for i, h in enumerate(node.hosts)),
        *(("resource", r) for r in node.resources),
    ]  # fmt: skip
    if node.hosts:
        facts.append(("ssh", f"gml connect {node.id}"))
    if node.note:
        facts.append(("note", NOTES.get(node.note, node.note)))
    return facts


def extend(
    node_id: c.NodeId,
    by: Annotated[str, typer.Argument(help="Time to add, for example 2h.")],
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Extend the lifetime of a node or cluster.

    Counted from the end in its labels. The provider's own time limit is the latest possible end.
    """
    node = c.open_fleet().resolve(node_id)
    _move(node, None, dry_run, json, by=parse_timeout(by, field="the extension"))


def timeout_reset(
    node_id: c.NodeId,
    timeout: Annotated[
        str, typer.Option("--timeout", help="New lifetime; default: the original one.")
    ] = "",
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Restart the lifetime from now."""
    fleet = c.open_fleet()
    node = fleet.resolve(node_id)
    length = parse_timeout(timeout) if timeout else node.timeout_s
    if not length:
        raise UsageError(f"the original timeout of {node.id} is not known", "say --timeout 3h")
    _move(node, round(fleet.now()) + length, dry_run, json)


def timeout_remove(
    node_id: c.NodeId, yes: c.Yes = False, dry_run: c.DryRun = False, json: c.Json = False
) -> None:
    """Remove a node's end: it runs until someone deletes it.

    The idle limit stays.
    """
    node = c.open_fleet().resolve(node_id)
    if not dry_run:
        rate = "" if node.price is None else f" at ${node.price * 24:.0f} a day"
        confirm(f"let {node.id} run without an end{rate}?")
    _move(node, None, dry_run, json)


def _move(node: Node, deadline: int | None, dry_run: bool, json: bool, by: int = 0) -> None:
    fleet = c.open_fleet()
    if dry_run:
        emit({"id": node.id, "requests": change.extend_plan(fleet, node, deadline, by=by)})
        return
    moved = change.extend(fleet, node, deadline, by=by)
    if json:
        emit(row(moved, fleet.now()))
    elif moved.deadline is None:
        say(f"gml: {moved.id} has no end any more; `gml node delete {moved.id}` ends it")
    else:
        left = format_duration(moved.deadline - fleet.now())
        say(f"gml: {moved.id} ends {format_time(moved.deadline)}, in {left}")


def delete(
    node_ids: Annotated[list[str], typer.Argument(help="Node ids.", autocompletion=c.node_ids)],
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Delete nodes and wait until the provider no longer knows them."""
    fleet = c.open_fleet()
    nodes = [fleet.resolve(i) for i in dict.fromkeys(node_ids)]
    if dry_run:
        emit([{"id": n.id, "requests": change.delete_plan(fleet, n)} for n in nodes])
        return
    confirm(f"delete {', '.join(n.id for n in nodes)}?", scripts_may=True)
    done, failed = [], []
    with Spinner() as spinner:
        for node in nodes:
            entry = {"id": node.id, "deleted": True, "spent_usd": node.cost(fleet.now())}
            try:
                spinner(f"deleting {node.id}")
                ended = change.delete(fleet, node, spinner)
                entry["spent_usd"] = ended.cost(fleet.now())
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
    """List all instance types with dated list prices."""
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
                "aws": sku.aws_type,
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
             "google" * bool(r["google"]) + " lambda" * bool(r["lambda"])
             + " aws" * bool(r["aws"]))
            for r in rows
        ],
        ("TYPE", "CHIP", "CHIPS", "HOSTS", "HBM GiB", "$/H", "$/H SPOT", "AT"),
    )  # fmt: skip
    print(f"list prices as of {hardware.dated()}; `gml offers TYPE` has what is live")

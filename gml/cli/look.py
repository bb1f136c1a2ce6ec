"""Commands that only look: `gml ls`, `offers`, `cost`, `doctor`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gaia import hardware
from gml.cli import listing
from gml.cli import options as c
from gml.cli.terminal import Spinner, emit, say, table
from gml.doctor import run_checks
from gml.durations import format_duration, parse_duration
from gml.errors import StockOut, UsageError
from gml.model import parse_sku
from gml.providers import registry

Provider = Annotated[
    str, typer.Option("--provider", "-p", help="Provider to ask: google, lambda, aws or local.")
]


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(ls)
    app.command()(offers)
    app.command()(cost)
    app.command()(doctor)


def ls(
    refresh: c.Refresh = False,
    cached: c.Cached = False,
    json: c.Json = False,
) -> None:
    """List all nodes with time left and money spent.

    A listing of the last 20 s is shown as it is; --refresh asks the clouds in any case.
    """
    if cached:
        listing.show_cached(json)
        return
    fleet = c.open_fleet()
    now = fleet.now()
    kept = fleet.store.read_json(listing.CACHE)
    # The folder's own time tells of records that have gone since.
    folder = fleet.store.nodes
    newest = max((p.stat().st_mtime for p in [*folder.glob("*"), folder] if p.exists()), default=0)
    at = kept.get("at", 0)
    if not refresh and not kept.get("problems") and newest < at and 0 <= now - at < 20:
        listing.show_cached(json)
        return
    with Spinner(quiet=True) as progress:
        progress("asking the clouds")
        live = fleet.list_live()
    now = fleet.now()  # by the services' clocks, now that they have answered
    listing.save(fleet.store, live.nodes, live.problems, now)
    listing.show(live.nodes, live.problems, now, json)
    if live.problems:
        raise typer.Exit(11)


def offers(
    instance_type: Annotated[str, typer.Argument(help="Type to look for; default: all.")] = "",
    provider: Provider = "",
    zone: Annotated[str, typer.Option("--zone", help="Zone or region to list.")] = "",
    spot: Annotated[bool, typer.Option("--spot", help="List spot prices.")] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask each zone's API instead of the dated table.")
    ] = False,
    json: c.Json = False,
) -> None:
    """List prices and capacity by zone, cheapest first."""
    fleet = c.open_fleet()
    ready = {p.name for p in fleet.configured()}
    names = [provider] if provider else ["google", "lambda", *(["aws"] if "aws" in ready else [])]
    wanted = [parse_sku(instance_type)] if instance_type else list(hardware.skus().values())
    rows = []
    with Spinner(quiet=json) as progress:
        for name in names:
            live = name in ready and (refresh or name == "lambda")
            for sku in wanted:
                if name == "lambda" and not live:
                    continue
                progress(f"asking {name} for {sku.name}")
                rows += fleet.provider(name).offers(sku, spot=spot, zone=zone, live=live)
    rows.sort(key=lambda o: (o.capacity == "none", o.price is None, o.price or 0.0))
    if json:
        emit(rows)
    else:
        table(
            [
                (o.sku, o.provider, o.zone, "spot" if o.spot else "on demand",
                 "unknown" if o.price is None else f"{o.price:.2f}", o.capacity, o.limit, o.source)
                for o in rows
            ],
            ("TYPE", "PROVIDER", "ZONE", "KIND", "$/H", "CAPACITY", "ENDED BY", "PRICE FROM"),
        )  # fmt: skip
        if "lambda" not in ready and "lambda" in names:
            say("gml: no Lambda offers: run `gml init lambda` first (they are live only)")
    if not rows:
        raise StockOut("nothing is offered for that", "see `gml node list-types`")


def cost(
    since: Annotated[
        str, typer.Option("--since", help="Begin of the period: 7d, 12h, … or 2026-11-01.")
    ] = "30d",
    json: c.Json = False,
) -> None:
    """Sum up the cost of the nodes at list prices."""
    fleet = c.open_fleet()
    now = fleet.now()
    try:
        begin = time.mktime(time.strptime(since, "%Y-%m-%d"))
    except ValueError:
        begin = now - parse_duration(since, "--since")
    nodes = [n for n in fleet.store.history() if (n.deleted or now) >= begin]
    nodes += [n for n in fleet.store.all() if n.phase != "intent"]
    rows = []
    for node in nodes:
        ended = node.ended(now)
        begun = max(node.begun(now), begin)
        hours = max(0.0, ended - begun) / 3600
        spent = None if node.price is None else round(node.price * hours, 4)
        rows.append({**listing.row(node, now), "hours": round(hours, 3), "spent_usd": spent})
        rows[-1]["ended"] = node.deleted
    total = round(sum(r["spent_usd"] or 0.0 for r in rows), 4)
    unknown = [r["id"] for r in rows if r["spent_usd"] is None]
    if json:
        emit({"since": round(begin), "nodes": rows, "total_usd": total, "price_unknown": unknown})
        return
    table(
        [
            (r["id"], r["type"], format_duration(r["hours"] * 3600),
             "?" if r["spent_usd"] is None else f"${r['spent_usd']:.2f}",
             "running" if r["ended"] is None else "ended")
            for r in rows
        ],
        ("ID", "TYPE", "TIME", "COST", ""),
    )  # fmt: skip
    print(f"\n${total:.2f} in all, at list prices; disks, network and taxes are not in it")
    if unknown:
        print(f"without a known price: {', '.join(unknown)}")


def doctor(
    provider: Provider = "",
    instance_type: Annotated[
        str, typer.Option("--instance-type", "-t", help="Type to verify for Compute Engine too.")
    ] = "",
    json: c.Json = False,
) -> None:
    """Check this set-up and name the command that mends each problem.

    Checks tools, keys, file modes, credentials, APIs and the firewall; with -t also whether Compute
    Engine offers the type and the image, after which `auto` takes that way.
    """
    fleet = c.open_fleet()
    if provider and provider not in registry.NAMES:
        raise UsageError(
            f"--provider {provider!r} is not known", f"one of {', '.join(registry.NAMES)}"
        )
    with Spinner(quiet=json) as progress:
        checks = run_checks(fleet, provider, instance_type, progress)
    bad = [x for x in checks if not x["ok"]]
    if json:
        emit({"ok": not bad, "checks": checks})
    else:
        for x in checks:
            print(f"{'ok  ' if x['ok'] else 'FAIL'} {x['check']}: {x['detail']}")
            if not x["ok"] and x["fix"]:
                print(f"     fix: {x['fix']}")
    if bad:
        raise typer.Exit(2)

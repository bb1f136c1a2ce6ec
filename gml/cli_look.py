"""Commands that only look: `gml ls`, `offers`, `cost`, `doctor`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gml import cli_common as c
from gml.durations import format_duration
from gml.errors import StockOut, UsageError
from gml.ui import Progress, emit, say, table


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(ls)
    app.command()(offers)
    app.command()(cost)
    app.command()(doctor)


def ls(
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the clouds now.")] = False,
    cached: Annotated[bool, typer.Option("--cached", help="Only the last look.")] = False,
    json: c.Json = False,
) -> None:
    """All nodes with time left and money spent.

    A look of the last 20 s is shown as it is; --refresh asks the clouds in any case.
    """
    from gml import listing

    if cached:
        listing.show_cached(json)
        return
    manager = c.manager()
    now = manager.now()
    kept = manager.store.read_json(listing.CACHE)
    # The folder's own time tells of records that have gone since.
    folder = manager.store.nodes
    newest = max((p.stat().st_mtime for p in [*folder.glob("*"), folder] if p.exists()), default=0)
    at = kept.get("at", 0)
    if not refresh and not kept.get("problems") and newest < at and 0 <= now - at < 20:
        listing.show_cached(json)
        return
    with Progress(quiet=True) as progress:
        progress("asking the clouds")
        found = manager.list_live()
    listing.save(manager.store, found.nodes, found.problems, now)
    listing.show(found.nodes, found.problems, now, json)
    if found.problems:
        raise typer.Exit(11)


def offers(
    instance_type: Annotated[str, typer.Argument(help="A type, or nothing for all.")] = "",
    provider: c.Provider = "",
    zone: c.Zone = "",
    spot: c.Spot = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask each zone's API instead of the dated table.")
    ] = False,
    json: c.Json = False,
) -> None:
    """Price x capacity x zone, cheapest first."""
    from gaia import hardware
    from gml.planning import parse_sku

    manager = c.manager()
    ready = {p.name for p in manager.configured()}
    names = [provider] if provider else ["google", "lambda"]
    wanted = [parse_sku(instance_type, "")] if instance_type else list(hardware.skus().values())
    rows = []
    with Progress(quiet=json) as progress:
        for name in names:
            live = name in ready and (refresh or name == "lambda")
            for sku in wanted:
                if sku is None or (name == "lambda" and not live):
                    continue
                progress(f"asking {name} for {sku.name}")
                rows += manager.provider(name).offers(sku, spot=spot, zone=zone, live=live)
    rows.sort(key=lambda o: (o.capacity == "none", o.price is None, o.price or 0.0))
    if json:
        emit(rows)
    else:
        table(
            [
                (o.sku, o.provider, o.zone, "spot" if o.spot else "on demand",
                 "?" if o.price is None else f"{o.price:.2f}", o.capacity, o.limit, o.source)
                for o in rows
            ],
            ("TYPE", "PROVIDER", "ZONE", "KIND", "$/H", "CAPACITY", "ENDED BY", "PRICE FROM"),
        )  # fmt: skip
        if "lambda" not in ready and "lambda" in names:
            say("gml: no Lambda offers: run `gml init lambda` first (they are live only)")
    if not rows:
        raise StockOut("nothing is offered for that", "see `gml node list-types`")


def cost(
    since: Annotated[str, typer.Option("--since", help="7d, 12h, … or 2026-11-01.")] = "30d",
    json: c.Json = False,
) -> None:
    """What the nodes have cost, by node and in all, at list prices."""
    from gml.durations import parse_duration
    from gml.listing import row

    manager = c.manager()
    now = manager.now()
    try:
        begin = time.mktime(time.strptime(since, "%Y-%m-%d"))
    except ValueError:
        begin = now - parse_duration(since, "--since")
    nodes = [n for n in manager.store.history() if (n.deleted or now) >= begin]
    nodes += [n for n in manager.store.all() if n.phase != "intent"]
    rows = []
    for node in nodes:
        ended = node.deleted or now
        begun = max(node.created, begin)
        hours = max(0.0, ended - begun) / 3600
        spent = None if node.price is None else round(node.price * hours, 4)
        rows.append({**row(node, now), "hours": round(hours, 3), "spent_usd": spent})
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
    provider: c.Provider = "",
    instance_type: Annotated[
        str, typer.Option("--instance-type", "-t", help="Also verify this type for gce.")
    ] = "",
    json: c.Json = False,
) -> None:
    """What is missing here, each with the command that mends it.

    Checks tools, keys, file modes, credentials, APIs and the firewall; with -t also whether Compute
    Engine offers the type and the image, after which `auto` takes that way.
    """
    from gml.doctor import run_checks

    manager = c.manager()
    if provider and provider not in ("google", "lambda", "local"):
        raise UsageError(f"--provider {provider!r} is not known", "google, lambda or local")
    with Progress(quiet=json) as progress:
        checks = run_checks(manager, provider, instance_type, progress)
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

"""What all commands share: options, the manager, and how a `Wish` is made from options."""

from __future__ import annotations

from typing import Annotated

import typer

from gml.config import load, parse_host
from gml.durations import parse_duration, parse_timeout
from gml.errors import UsageError
from gml.model import Node
from gml.nodes import Manager
from gml.planning import Wish
from gml.store import Store

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the exact API requests only.")]
# `gml.cli.run` takes it off every command line; it is declared where a question may be asked, so
# that help and completion know it.
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")]
NodeId = Annotated[str, typer.Argument(help="Node id.", autocompletion=lambda: node_ids())]
Type = Annotated[
    str, typer.Option("--instance-type", "-t", help="v6e-8, v6e-2x4, v5p-128, 8xH100, gpu_1x_gh200")
]
Provider = Annotated[str, typer.Option("--provider", "-p", help="google, lambda or local.")]
Timeout = Annotated[str, typer.Option("--timeout", help="Lifetime, required: 3hr, 90m, 1h30m.")]
Name = Annotated[str, typer.Option("--name", help="Node id to use instead of a made-up one.")]
Zone = Annotated[str, typer.Option("--zone", help="Zone or region; without it, cheapest first.")]
Spot = Annotated[bool, typer.Option("--spot", help="Cheaper, may be taken away at any time.")]
MaxPrice = Annotated[
    float | None, typer.Option("--max-price", help="US dollars per hour for all of it.")
]
Retry = Annotated[bool, typer.Option("--retry-until-up", help="Go round the zones until one has.")]
Strategy = Annotated[
    str, typer.Option("--strategy", help="google: auto, gce, flex, queued or node.")
]
Reservation = Annotated[str, typer.Option("--reservation", help="Reservation to draw from.")]
Idle = Annotated[str, typer.Option("--idle", help='Delete after so long idle; "none" for never.')]
Disk = Annotated[int, typer.Option("--disk-gb", help="Boot disk (gce).", min=20, max=64000)]
Limit = Annotated[
    str, typer.Option("--limit", help="The provider's own limit, if later than --timeout.")
]
Wait = Annotated[str, typer.Option("--wait", help="How long to wait in a queue.")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="Create even if nothing would end it.")]
SelfTerminate = Annotated[
    bool, typer.Option("--self-terminate", help="lambda: put a key on the machine to end itself.")
]
NoSsh = Annotated[bool, typer.Option("--no-ssh", help="Return before the shell is usable.")]
HostList = Annotated[
    list[str] | None, typer.Option("--host", help="local: user@address:port, repeatable.")
]


def node_ids() -> list[str]:
    """For shell completion."""
    from gml.config import home_folder

    return [n.id for n in Store(home_folder()).all()]


def check_machine(node: Node) -> None:
    """Raises UsageError for a cluster where a machine with a shell is needed."""
    if node.strategy == "gke":
        raise UsageError(f"{node.id} is a cluster", f"gml cluster run {node.id} …, or kubectl")


def manager() -> Manager:
    """A manager over the user's configuration."""
    config = load()
    return Manager(config, Store(config.home))


def make_wish(
    found: Manager,
    *,
    instance_type: str,
    timeout: str,
    provider: str = "",
    name: str = "",
    zone: str = "",
    spot: bool = False,
    max_price: float | None = None,
    retry_until_up: bool = False,
    strategy: str = "",
    reservation: str = "",
    idle: str = "",
    disk_gb: int = 100,
    limit: str = "",
    wait: str = "1h",
    unsafe: bool = False,
    self_terminate: bool = False,
    host: list[str] | None = None,
    no_ssh: bool = False,
) -> Wish:
    """Options as a `Wish`; raises UsageError naming the option."""
    hosts = tuple(parse_host(h) for h in host or [])
    return Wish(
        instance_type=instance_type or ("local" if hosts or provider == "local" else ""),
        timeout_s=parse_timeout(timeout, found.config.default_timeout),
        provider=provider,
        name=name,
        zone=zone,
        spot=spot,
        strategy=strategy or found.config.google.strategy,
        max_price=max_price,
        retry_until_up=retry_until_up,
        reservation=reservation,
        idle=idle,
        disk_gb=disk_gb,
        limit_s=parse_duration(limit, "--limit") if limit else 0,
        wait_s=parse_duration(wait, "--wait"),
        unsafe=unsafe,
        self_terminate=self_terminate,
        hosts=hosts,
        wait_ssh=not no_ssh,
    )

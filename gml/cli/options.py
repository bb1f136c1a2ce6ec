"""Options and steps that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from gml.config import home_folder, load
from gml.errors import UsageError
from gml.fleet import Fleet
from gml.model import Node
from gml.request import NodeRequest
from gml.store import Store

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the exact requests or commands, and send none.")
]
# `gml.cli.entry` takes it off every command line; it is declared where a question may be asked, so
# that help and completion know it.
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")]
NodeId = Annotated[str, typer.Argument(help="Node id.", autocompletion=lambda: node_ids())]
HostIndex = Annotated[int, typer.Option("--host", help="Index of the host in a slice.", min=0)]
Refresh = Annotated[bool, typer.Option("--refresh", help="Ask the clouds now.")]
Cached = Annotated[bool, typer.Option("--cached", help="Show the last listing without asking.")]


def node_ids() -> list[str]:
    """Ids for shell completion."""
    return [n.id for n in Store(home_folder()).all()]


def check_machine(node: Node) -> None:
    """Raises UsageError for a cluster where a machine with a shell is needed."""
    if node.strategy == "gke":
        raise UsageError(f"{node.id} is a cluster", f"gml cluster run {node.id} …, or kubectl")


def open_fleet() -> Fleet:
    """The fleet of the user's configuration."""
    config = load()
    return Fleet(config, Store(config.home))


def completed(fleet: Fleet, request: NodeRequest, instead: str) -> NodeRequest:
    """The request with the configuration's defaults; raises UsageError without a type."""
    request = request.completed(fleet.config)
    if not request.instance_type:
        raise UsageError("--instance-type is missing", instead)
    return request


def command_words(command: list[str] | None) -> list[str]:
    """The words of a command, without the `--` before it."""
    return [w for i, w in enumerate(command or []) if not (i == 0 and w == "--")]

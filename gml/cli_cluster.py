"""`gml cluster …`."""

import typer


def add(app: typer.Typer) -> None:
    """Registers the commands."""

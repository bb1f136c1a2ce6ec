"""Deletes what a failed create has made."""

from __future__ import annotations

from gml.fleet import Fleet
from gml.model import Node
from gml.nodes.signals import uninterrupted
from gml.progress import Progress
from gml.providers.base import Provider


def undo(
    fleet: Fleet, intent: Node, provider: Provider, error: BaseException, progress: Progress
) -> None:
    """Deletes whatever a failed create has made; a second Ctrl-C does not stop this.

    Args:
        fleet: whose record of the node is dropped.
        intent: the node as the create last meant it, with the places that it tried.
        provider: where it was made.
        error: why the create failed; gets notes on what became of the node.
        progress: told of each step.
    """
    with uninterrupted():
        try:
            if intent.tried:
                progress("removing what the create had begun")
                provider.delete(intent, progress)
            fleet.store.remove(intent)
            fleet.ssh.forget(intent)
            if isinstance(error, KeyboardInterrupt):
                error.add_note(f"stopped; nothing of {intent.id} is left")
        except Exception as second:
            text = getattr(second, "problem", str(second))
            error.add_note(
                f"{intent.id} may still exist ({text}); its deadline stands, and "
                f"`gml reap` or `gml node delete {intent.id}` removes it"
            )

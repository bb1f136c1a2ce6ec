"""Deletes what a failed create has made."""

from __future__ import annotations

import contextlib

from gml.fleet import Fleet
from gml.model import Node
from gml.nodes.signals import uninterrupted
from gml.progress import Progress, unbreakable
from gml.providers.base import Provider


def undo(
    fleet: Fleet, intent: Node, provider: Provider, error: BaseException, progress: Progress
) -> None:
    """Deletes whatever a failed create has made.

    A second Ctrl-C does not stop this, nor does an output, a disk or a terminal that is gone.

    Args:
        fleet: whose record of the node is dropped.
        intent: the node as the create last meant it, with the places that it tried.
        provider: where it was made.
        error: why the create failed; gets notes on what became of the node.
        progress: told of each step.
    """
    tell = unbreakable(progress)
    with uninterrupted():
        try:
            if intent.tried:
                tell("removing what the create had begun")
                provider.delete(intent, tell)
            # A record that can't be dropped now is dropped by the next `gml reap`.
            with contextlib.suppress(OSError):
                fleet.store.remove(intent)
                fleet.ssh.forget(intent)
            if not isinstance(error, Exception) or isinstance(error, OSError):
                error.add_note(f"stopped; nothing of {intent.id} is left")
        except Exception as second:
            text = getattr(second, "problem", str(second))
            error.add_note(
                f"{intent.id} may still exist ({text}); its deadline stands, and "
                f"`gml reap` or `gml node delete {intent.id}` removes it"
            )

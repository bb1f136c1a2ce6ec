"""The command line. `entry.py` runs it; one file per subject; `terminal.py` is what is seen."""

from gml.cli.entry import main

__all__ = ["main"]

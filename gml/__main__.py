"""`python -m gml`."""

from gml.cli import main

main()

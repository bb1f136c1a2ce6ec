"""`python -m gaia_metrics` is `gaia-metrics`."""

from gaia_metrics.cli import main

main()

"""On-demand TPUs and GPUs that always go away: `gml node create`, `gml run`, `gml reap`."""

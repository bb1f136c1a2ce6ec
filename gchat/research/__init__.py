"""From an idea to a curve: sweeps, comparisons of branches, ladders of sizes."""

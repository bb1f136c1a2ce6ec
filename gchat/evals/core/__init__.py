"""CORE: 22 tasks in context, centred on their baselines and averaged (DCLM, arXiv 2406.11794)."""

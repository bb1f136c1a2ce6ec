"""The run folder: segments (the one truth), metrics.jsonl, run.json, the lock."""

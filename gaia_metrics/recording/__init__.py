"""The training process: `init`, `Run`, the worker thread, alerts, system samples."""

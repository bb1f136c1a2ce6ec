"""Files that run on the rented machine: `watchdog.py` (deadline, idleness, preemption)."""

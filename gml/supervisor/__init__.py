"""Queues of jobs that run without the laptop: one reconcile loop for machines and JobSets.

`plan.py` decides the next step from a queue's document and from what is really there; `loop.py`
carries steps out, one at a time; `machine.py` and `jobsets.py` are what it acts on.
"""

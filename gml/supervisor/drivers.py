"""Chooses what a queue runs on: a machine of its own, or a cluster."""

from __future__ import annotations

from collections.abc import Callable

from gml.documents import Documents
from gml.fleet import Fleet
from gml.supervisor.jobsets import ClusterDriver
from gml.supervisor.loop import Driver
from gml.supervisor.machine import MachineDriver
from gml.supervisor.queue import Queue


def drivers(fleet: Fleet, documents: Documents) -> Callable[[Queue], Driver]:
    """The driver of each queue."""

    def driver(queue: Queue) -> Driver:
        return ClusterDriver(fleet) if queue.cluster else MachineDriver(fleet, documents)

    return driver

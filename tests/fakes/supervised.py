"""A world in memory for the supervisor's loop: machines, jobs, and a hook at every point of it.

Stands in for `MachineDriver` alone, so that thousands of kills and interleavings can be tried; the
real driver runs against the fake cloud and real sshd in test_supervisor_machines.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gml.documents import NEW, Conflict, Documents
from gml.errors import StockOut, Unavailable
from gml.model import Node
from gml.supervisor.machine import job_name
from gml.supervisor.plan import Seen


class Killed(BaseException):
    """The process was killed here: nothing of it runs any more."""


@dataclass
class World:
    """A world as it really is. `point` is called before and after everything that has an effect."""

    clock: float = 1_800_000_000.0
    machines: dict[str, Node] = field(default_factory=dict)
    jobs: dict[tuple[str, str], str] = field(default_factory=dict)
    starts: list[tuple[str, str]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    full: bool = False
    unreachable: bool = False
    hook: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.clock

    def point(self) -> None:
        self.hook()

    def running(self) -> list[tuple[str, str]]:
        """Jobs that run on machines that work."""
        return [
            k
            for k, state in self.jobs.items()
            if state == "running" and k[0] in self.machines and not self.machines[k[0]].dead()
        ]

    def preempt(self) -> None:
        for name, node in self.machines.items():
            self.machines[name] = node.replace(state="preempted")

    def finish(self, code: int = 0) -> None:
        for key in self.running():
            self.jobs[key] = str(code)
            self.finished.append(key[1])


class WorldDriver:
    """The loop's driver on a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def observe(self, queue) -> Seen:
        world = self.world
        if world.unreachable:
            raise Unavailable("the cloud does not answer")
        live = {i: n for i, n in world.machines.items() if i.startswith(f"{queue.name}-")}
        dead = {i: n.state for i, n in live.items() if n.dead()}
        state = "none"
        machine, job = queue.machine, queue.job
        if machine and machine.id in live and job:
            state = world.jobs.get((machine.id, job_name(job)), "none")
        return Seen(live, dead, state)

    def create(self, queue, machine_id, progress) -> Node:
        world = self.world
        progress("asking")
        if world.full:
            raise StockOut("nothing anywhere")
        world.point()
        node = Node(machine_id, "google", "tester", "v6e-8", state="creating",
                    created=round(world.clock), deadline=queue.deadline, price=10.0)  # fmt: skip
        world.machines[machine_id] = node
        world.made.append(machine_id)
        world.point()
        progress("waiting")
        if machine_id not in world.machines:
            raise Unavailable("it was deleted under us")
        world.machines[machine_id] = node.replace(state="ready")
        world.point()
        return node.replace(state="ready")

    def delete(self, queue, node, progress=None) -> None:
        self.world.point()
        self.world.machines.pop(node.id, None)
        self.world.point()

    def delete_half(self, queue, progress=None) -> None:
        self.world.point()

    def start(self, queue, job, progress) -> None:
        key = (queue.machine.id, job_name(job))
        progress("sending")
        if key[0] not in self.world.machines:
            raise Unavailable("it does not answer")
        self.world.point()
        if key not in self.world.jobs:
            self.world.jobs[key] = "running"
            self.world.starts.append(key)
        self.world.point()

    def log(self, queue, job) -> str:
        return "the log\n"

    def end_job(self, queue, job) -> None:
        self.world.point()
        self.world.jobs.pop((queue.machine.id, job_name(job)), None)

    def forget(self, queue) -> None:
        self.world.point()


class Watched:
    """Documents with a point before and after every write."""

    def __init__(self, documents: Documents, world: World) -> None:
        self.documents, self.world = documents, world
        self.where = documents.where

    def names(self, folder: str) -> list[str]:
        return self.documents.names(folder)

    def read(self, name: str):
        return self.documents.read(name)

    def write(self, name: str, value: dict[str, Any], generation: int) -> int:
        self.world.point()
        made = self.documents.write(name, value, generation)
        self.world.point()
        return made

    def delete(self, name: str, generation: int) -> None:
        self.world.point()
        self.documents.delete(name, generation)
        self.world.point()


class MemoryDocuments:
    """Documents without a disk (an fsync each would take most of the time); same contract."""

    where = "memory"

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, int]] = {}
        self.counter = 0

    def names(self, folder: str) -> list[str]:
        return sorted(n for n in self.values if n.startswith(f"{folder}/"))

    def read(self, name: str):
        there = self.values.get(name)
        return None if there is None else (json.loads(there[0]), there[1])

    def write(self, name: str, value: dict[str, Any], generation: int) -> int:
        if self.values.get(name, ("", NEW))[1] != generation:
            raise Conflict(f"{name} was changed by somebody else")
        self.counter += 1
        self.values[name] = (json.dumps(value), self.counter)
        return self.counter

    def delete(self, name: str, generation: int) -> None:
        if name in self.values and self.values[name][1] != generation:
            raise Conflict(f"{name} was changed by somebody else")
        self.values.pop(name, None)

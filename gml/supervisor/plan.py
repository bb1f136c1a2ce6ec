"""Decides the next step of a queue. No network, no clock: only what it is given.

Whatever a step leaves half done when its process is killed is seen by the next decision: a machine
is `creating` in the document before it is asked for, and `deleting` before it is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gml.model import Node
from gml.supervisor.queue import Job, Queue

# A machine that answers neither ssh nor anything else for so long is replaced.
SILENT_S = 900
# Less time than this is not worth a machine.
SHORTEST_S = 120


@dataclass(frozen=True)
class Seen:
    """The queue's machines and job as they really are.

    Attributes:
        machines: by id, whatever exists of this queue's machines.
        dead: ids of those that no longer work (preempted, failed), with the reason.
        job: state of the current job on the current machine: none, running, lost (no exit code),
            silent (no answer), or its exit code.
    """

    machines: dict[str, Node] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    job: str = "none"


Kind = Literal["rest", "sweep", "drop", "create", "start", "finish", "fail"]


@dataclass(frozen=True)
class Step:
    """The next thing to do.

    Attributes:
        kind: rest (nothing now), sweep (delete machines that are not the queue's any more), drop
            (delete its machine), create, start (the job), finish (note the job's end), fail (end
            all jobs that are left).
        why: reason, for people.
        again: the machine was taken away in the middle of its work, which counts as a restart.
    """

    kind: Kind
    why: str = ""
    again: bool = False
    ids: tuple[str, ...] = ()
    job: Job | None = None
    code: int = 0


def next_step(queue: Queue, seen: Seen, now: float) -> Step:
    """The next step of a queue, given what is there."""
    machine, job = queue.machine, queue.job
    current = machine.id if machine else ""
    others = tuple(i for i in seen.machines if i != current)
    if others:
        return Step("sweep", "left by an earlier pass", ids=others)
    if machine is not None and machine.phase != "up":
        return Step("drop", f"was still {machine.phase}")
    if machine is not None:
        if current not in seen.machines:
            return Step("drop", "is gone", again=job is not None)
        if current in seen.dead:
            return Step("drop", f"is {seen.dead[current]}", again=job is not None)
    if queue.removing or job is None:
        why = "the queue is removed" if queue.removing else "the queue is empty"
        return Step("drop", why) if machine else Step("rest", why)
    if machine is not None and seen.job.isdigit():
        return Step("finish", job=job, code=int(seen.job))
    if now >= queue.deadline:
        return Step("drop" if machine else "fail", "the queue's deadline is past")
    if machine is None:
        return _without_machine(queue, now)
    if seen.job == "none":
        return Step("start", job=job)
    if seen.job == "lost":
        return Step("drop", "lost the job (was it rebooted?)", again=True)
    if seen.job == "silent" and queue.silent_since and now - queue.silent_since > SILENT_S:
        return Step("drop", "does not answer", again=True)
    return Step("rest", f"{job.name} runs" if seen.job == "running" else "no answer")


def _without_machine(queue: Queue, now: float) -> Step:
    if queue.restarts > queue.max_restarts:
        return Step("fail", f"its machines were taken away {queue.restarts} times")
    if queue.deadline - now < SHORTEST_S:
        return Step("fail", "too little time is left before the queue's deadline")
    if queue.budget is not None and queue.spent >= queue.budget:
        return Step("fail", f"its budget of ${queue.budget:.2f} is used up")
    if now < queue.retry_at:
        return Step("rest", queue.note)
    return Step("create")


def lifetime(queue: Queue, price: float | None, now: float) -> tuple[int, float | None]:
    """Lifetime of the next machine in seconds, and the highest price at which the budget holds.

    Args:
        queue: whose deadline and budget bound it.
        price: lowest price to be had, in US dollars per hour; None where unknown.
        now: unix seconds.
    """
    left = int(queue.deadline - now)
    if queue.budget is None:
        return left, queue.request.max_price
    if price is None:
        return 0, None
    money = queue.budget - queue.spent
    if price > 0:
        left = min(left, int(money / price * 3600))
    # The cheapest place may have none: a dearer one is taken only as far as the money reaches.
    highest = money / left * 3600 if left > 0 else 0.0
    wanted = queue.request.max_price
    return left, highest if wanted is None else min(wanted, highest)
